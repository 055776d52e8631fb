"""Means of tokens over segments: tokens are read once, and their gradient is written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backend import interpreted
from ...launch import launch
from ...primitives import dot, sample_columns

_BLOCK_L = 64
# The product has the columns as its rows: 64 is the least that wgmma takes.
_BLOCK_C = 128


@triton.jit
def _load_index(
    segment_index,
    token_mask,
    sample,
    token,
    length,
    SEGMENTS: tl.constexpr,
    SHARED_INDEX: tl.constexpr,
):
    """The segment of each token, -1 where it does not exist, is masked out or has no segment."""
    exists = token < length
    row = 0 if SHARED_INDEX else sample * length
    wide = tl.load(segment_index + row + token, mask=exists, other=-1)
    # Before the cut to 32 bits, which would make segments of numbers far outside.
    label = tl.where((wide >= 0) & (wide < SEGMENTS), wide, -1).to(tl.int32)
    if token_mask is not None:
        kept = tl.load(token_mask + sample * length + token, mask=exists, other=0)
        label = tl.where(kept != 0, label, -1)
    return label


@triton.jit(do_not_specialize=["length"])
def segment_pool_forward_kernel(
    tokens,
    segment_index,
    token_mask,
    segments,
    counts,
    length,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SHARED_INDEX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of columns of one sample."""
    sample, part, column = sample_columns(WIDTH, BLOCK_C)
    place = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_C, BLOCK_T), tl.float32)
    count = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, length, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        label = _load_index(
            segment_index, token_mask, sample, token, length, SEGMENTS, SHARED_INDEX
        )
        member = (label[:, None] == place[None, :]).to(tl.float32)
        count += tl.sum(member, axis=0)
        # What belongs to no segment may hold anything, also NaN, which 0 times does not clear.
        mask = (label >= 0)[:, None] & (column < WIDTH)[None, :]
        pointers = tokens + (sample * length + token[:, None]) * WIDTH + column[None, :]
        x = tl.load(pointers, mask=mask, other=0.0)
        member = member.to(x.dtype)
        total = dot(tl.trans(x), member, total, UPCAST)
    mean = total / tl.maximum(count, 1.0)[None, :]
    mask = (column < WIDTH)[:, None] & (place < SEGMENTS)[None, :]
    pointers = segments + (sample * SEGMENTS + place[None, :]) * WIDTH + column[:, None]
    tl.store(pointers, mean.to(segments.dtype.element_ty), mask=mask)
    if part == 0:
        tl.store(counts + sample * SEGMENTS + place, count, mask=place < SEGMENTS)


@triton.jit(do_not_specialize=["length"])
def segment_pool_backward_kernel(
    d_segments,
    segment_index,
    token_mask,
    counts,
    d_tokens,
    length,
    WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SHARED_INDEX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of tokens takes its segments' gradient over their counts."""
    tiles = (length + BLOCK_L - 1) // BLOCK_L
    program = tl.program_id(0).to(tl.int64)
    sample = program // tiles
    token = (program % tiles).to(tl.int32) * BLOCK_L + tl.arange(0, BLOCK_L)
    label = _load_index(segment_index, token_mask, sample, token, length, SEGMENTS, SHARED_INDEX)
    belongs = label >= 0
    segment = sample * SEGMENTS + tl.where(belongs, label, 0)
    share = 1.0 / tl.load(counts + segment, mask=belongs, other=1.0)
    for start in range(0, WIDTH, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        inside = (column < WIDTH)[None, :]
        upstream = tl.load(
            d_segments + segment[:, None] * WIDTH + column[None, :],
            mask=belongs[:, None] & inside,
            other=0.0,
        )
        gradient = upstream.to(tl.float32) * share[:, None]
        pointers = d_tokens + (sample * length + token[:, None]) * WIDTH + column[None, :]
        mask = (token < length)[:, None] & inside
        tl.store(pointers, gradient.to(d_tokens.dtype.element_ty), mask=mask)


def forward(
    tokens: Tensor, segment_index: Tensor, num_segments: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Segments [b, T, C] and counts fp32 [b, T] of contiguous inputs; the mask is uint8."""
    batch, length, width = tokens.shape
    segments = tokens.new_empty((batch, num_segments, width))
    counts = tokens.new_empty((batch, num_segments), dtype=torch.float32)
    launch(
        segment_pool_forward_kernel,
        (batch * triton.cdiv(width, _BLOCK_C),),
        tokens,
        segment_index,
        token_mask,
        segments,
        counts,
        length,
        WIDTH=width,
        SEGMENTS=num_segments,
        SHARED_INDEX=segment_index.dim() == 1,
        BLOCK_L=_BLOCK_L if tokens.element_size() == 2 else _BLOCK_L // 2,
        BLOCK_C=_BLOCK_C,
        BLOCK_T=max(16, triton.next_power_of_2(num_segments)),
        UPCAST=interpreted() and tokens.dtype == torch.bfloat16,
        num_warps=8,
        num_stages=4,
    )
    return segments, counts


def backward(
    d_segments: Tensor,
    segment_index: Tensor,
    token_mask: Tensor | None,
    counts: Tensor,
    length: int,
) -> Tensor:
    """Gradient at the tokens [b, length, C]."""
    batch, num_segments, width = d_segments.shape
    d_tokens = d_segments.new_empty((batch, length, width))
    launch(
        segment_pool_backward_kernel,
        (batch * triton.cdiv(length, _BLOCK_L),),
        d_segments,
        segment_index,
        token_mask,
        counts,
        d_tokens,
        length,
        WIDTH=width,
        SEGMENTS=num_segments,
        SHARED_INDEX=segment_index.dim() == 1,
        BLOCK_L=_BLOCK_L,
        BLOCK_C=_BLOCK_C,
        num_warps=4,
    )
    return d_tokens
