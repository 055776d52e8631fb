"""What the kernels of several ops share: device functions, and products left to the library."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


# Triton 3.6 takes a default that is a string for a constant only where it is wrapped as one.
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
def sample_columns(WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's sample, its part of the sample's columns, and those columns."""
    PARTS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0).to(tl.int64)
    part = program % PARTS
    return program // PARTS, part, part.to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)


def accumulate_product(out: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """out [m, n] fp32 (+)= left [m, k] @ right [k, n], accumulated in fp32; half or fp32 factors.

    Or all three with one more dimension in front. `first` overwrites. Does nothing on `meta`
    tensors: those only record launches.
    """
    if out.is_meta:
        return
    batched = out.dim() == 3
    multiply, add = (torch.bmm, torch.baddbmm) if batched else (torch.mm, torch.addmm)
    with torch.autocast(out.device.type, enabled=False):
        if out.device.type == "cpu" and left.dtype != torch.float32:
            # Only under the interpreter: the CPU has no half-precision product with an fp32 result.
            left, right = left.float(), right.float()
        if left.dtype == torch.float32:
            add(out, left, right, beta=0 if first else 1, out=out)
        elif first:
            multiply(left, right, out_dtype=torch.float32, out=out)
        else:
            add(out, left, right, out_dtype=torch.float32, out=out)
