"""Device functions that the kernels of several ops share."""

from __future__ import annotations

import triton
import triton.language as tl

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
