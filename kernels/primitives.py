"""Device functions that several ops share, and the matrix product that cuBLAS computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import note_product

LOG2_E = tl.constexpr(1.4426950408889634)
# Equal to grouping.reference.SMALLEST_UNIFORM.
SMALLEST_UNIFORM = tl.constexpr(2.0**-32)


# Triton 3.6 treats a string default as a constant only if it is wrapped in tl.constexpr.
TF32X3 = tl.constexpr("tf32x3")


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr, PRECISION: tl.constexpr = TF32X3):
    """a @ b + accumulator in fp32; UPCAST because the interpreter multiplies bf16 bit patterns."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def ordered_sum(values, number, BLOCK: tl.constexpr):
    """Sum of `number` fp32 values in memory, in a fixed order."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in tl.range(0, number, BLOCK):
        index = first + tl.arange(0, BLOCK)
        total += tl.load(values + index, mask=index < number, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], accurate to a few ulp even where 1 + x rounds (Kahan)."""
    shifted = 1.0 + x
    rounded = shifted == 1.0
    return tl.where(rounded, x, tl.log(shifted) * x / tl.where(rounded, 1.0, shifted - 1.0))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gumbel(seed, token_id, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr):
    """Gumbel noise [len(token_id), BLOCK_G], a function of (seed, token id, group) alone.

    Group g takes word g % 4 of the Philox counter token_id * ceil(G / 4) + g // 4.
    """
    QUADS: tl.constexpr = (GROUPS + 3) // 4
    quad = tl.arange(0, BLOCK_G // 4)
    return gumbel_of(seed, token_id[:, None] * QUADS + quad[None, :])


@triton.jit
def gumbel_of(seed, counter):
    """Gumbel noise [m, 4 n] of Philox counters [m, n]: four columns per counter."""
    u0, u1, u2, u3 = tl.rand4x(seed, counter)
    # tl.join adds the new axis last, so this order gives u0, u1, u2, u3 when flattened.
    u = tl.join(tl.join(u0, u2), tl.join(u1, u3))
    u = tl.reshape(u, (counter.shape[0], 4 * counter.shape[1]))
    # -log(-log u), u uniform in (0, 1)
    return -tl.log(-tl.log(tl.maximum(u, SMALLEST_UNIFORM)))


@triton.jit
def tile_position(row_tiles, column_tiles, TILE_GROUP: tl.constexpr):
    """`tile_at` of this program."""
    return tile_at(tl.program_id(0), row_tiles, column_tiles, TILE_GROUP)


@triton.jit
def tile_at(pid, row_tiles, column_tiles, TILE_GROUP: tl.constexpr):
    """Row and column tile number `pid`; TILE_GROUP row tiles share a column tile in L2."""
    per_group = TILE_GROUP * column_tiles
    first = (pid // per_group) * TILE_GROUP
    height = tl.minimum(row_tiles - first, TILE_GROUP)
    within = pid % per_group
    return first + within % height, within // height


@triton.jit
def sample_columns(WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sample of this program, the index of its block of columns, and the columns."""
    PARTS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0).to(tl.int64)
    part = program % PARTS
    return program // PARTS, part, part.to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)


def accumulate_product(out: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """out [m, n] fp32 (+)= left [m, k] @ right [k, n], accumulated in fp32; half or fp32 factors.

    All three may have a leading batch dimension. `first` overwrites `out`. On `meta` tensors it
    only records the product.
    """
    if out.is_meta:
        note_product(out, left, first=first)
        return
    batched = out.dim() == 3
    multiply, add = (torch.bmm, torch.baddbmm) if batched else (torch.mm, torch.addmm)
    with torch.autocast(out.device.type, enabled=False):
        if out.device.type == "cpu" and left.dtype != torch.float32:
            # Interpreter only: the CPU has no half-precision product with an fp32 result.
            left, right = left.float(), right.float()
        if left.dtype == torch.float32:
            add(out, left, right, beta=0 if first else 1, out=out)
        elif first:
            multiply(left, right, out_dtype=torch.float32, out=out)
        else:
            add(out, left, right, out_dtype=torch.float32, out=out)
