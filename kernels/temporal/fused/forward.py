"""Forward kernels of the temporal ops: the loss of one sample, and means of tokens over segments.

The difference of the centres and its contribution to every logit can be computed per column, so
forward and backward of the loss read the segments once. Tokens are read once too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backend import interpreted
from ...launch import launch
from ...primitives import dot, log1p, sample_columns, sigmoid
from ..options import TemporalOptions
from .layout import POOL_COLUMNS, POOL_TOKENS, bce_blocks


@triton.jit
def load_sides(paste_mask, segment_mask, sample, segments, BLOCK_T: tl.constexpr):
    """Masks and weights of a sample's segments.

    Returns the foreground mask, the mask of present segments, their weights in the difference of
    the centres, and the counts of foreground and background.
    """
    place = tl.arange(0, BLOCK_T)
    exists = place < segments
    pointers = sample * segments + place
    pasted = tl.load(paste_mask + pointers, mask=exists, other=0) != 0
    if segment_mask is not None:
        exists = exists & (tl.load(segment_mask + pointers, mask=exists, other=0) != 0)
    foreground = (exists & pasted).to(tl.float32)
    background = (exists & (pasted == 0)).to(tl.float32)
    n_foreground, n_background = tl.sum(foreground, axis=0), tl.sum(background, axis=0)
    present = foreground + background
    # v = z^f - z^b = sum_t direction_t z_t, direction_t = m_t / F - (1 - m_t) / B
    direction = foreground / tl.maximum(n_foreground, 1.0) - background / tl.maximum(
        n_background, 1.0
    )
    return foreground, present, direction, n_foreground, n_background


@triton.jit
def load_columns(
    rows,
    present,
    start,
    segments,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sample's segments in fp32 [BLOCK_T, BLOCK_D], 0 where one is absent."""
    place = tl.arange(0, BLOCK_T)
    column = start + tl.arange(0, BLOCK_D)
    mask = present[:, None] & (column < WIDTH)[None, :]
    pointers = rows + place[:, None] * WIDTH + column[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def error_of(logit, foreground):
    """sigmoid(logit) - foreground, without cancellation where the two are nearly equal."""
    return tl.where(foreground > 0, -sigmoid(-logit), sigmoid(logit))


@triton.jit(do_not_specialize=["segments"])
def temporal_forward_kernel(
    rows,
    paste_mask,
    segment_mask,
    losses,
    logits,
    segments,
    inverse_temperature,
    WIDTH: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The loss and the logits of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_T)
    foreground, present, direction, n_foreground, n_background = load_sides(
        paste_mask, segment_mask, sample, segments, BLOCK_T
    )
    logit = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        z = load_columns(
            rows + sample * segments * WIDTH, present > 0, start, segments, WIDTH, BLOCK_T, BLOCK_D
        )
        # v_d = z^f_d - z^b_d, and its contribution to logit_t = <z_t, v> / tau
        difference = tl.sum(direction[:, None] * z, axis=0)
        logit += tl.sum(z * difference[None, :], axis=1)
    logit = logit * inverse_temperature
    if SQUARED:
        # (sigmoid(logit_t) - m_t)^2
        error = error_of(logit, foreground)
        terms = error * error
    else:
        # BCE = max(x, 0) - x m + log(1 + exp(-|x|)), x = logit_t
        terms = tl.maximum(logit, 0.0) - logit * foreground + log1p(tl.exp(-tl.abs(logit)))
    both = (n_foreground > 0) & (n_background > 0)
    mean = tl.sum(terms * present, axis=0) / tl.maximum(n_foreground + n_background, 1.0)
    tl.store(losses + sample, tl.where(both, mean, 0.0))
    tl.store(logits + sample * segments + place, logit, mask=place < segments)


@triton.jit
def load_index(
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
    # Compared before truncation to 32 bits, which could map an index far out of range to a segment.
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
    """Means of one block of columns of one sample over its segments."""
    sample, part, column = sample_columns(WIDTH, BLOCK_C)
    place = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_C, BLOCK_T), tl.float32)
    count = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, length, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        label = load_index(segment_index, token_mask, sample, token, length, SEGMENTS, SHARED_INDEX)
        member = (label[:, None] == place[None, :]).to(tl.float32)
        count += tl.sum(member, axis=0)
        # A token without a segment may hold NaN, which a product with 0 would not clear.
        mask = (label >= 0)[:, None] & (column < WIDTH)[None, :]
        pointers = tokens + (sample * length + token[:, None]) * WIDTH + column[None, :]
        x = tl.load(pointers, mask=mask, other=0.0)
        member = member.to(x.dtype)
        total = dot(tl.trans(x), member, total, UPCAST)
    # segment_t = sum of its tokens / their number
    mean = total / tl.maximum(count, 1.0)[None, :]
    mask = (column < WIDTH)[:, None] & (place < SEGMENTS)[None, :]
    pointers = segments + (sample * SEGMENTS + place[None, :]) * WIDTH + column[:, None]
    tl.store(pointers, mean.to(segments.dtype.element_ty), mask=mask)
    if part == 0:
        tl.store(counts + sample * SEGMENTS + place, count, mask=place < SEGMENTS)


def as_bytes(mask: Tensor | None) -> Tensor | None:
    """The mask as uint8, which the kernels read."""
    return None if mask is None else mask.view(torch.uint8)


def bce_forward(
    segments: Tensor, paste_mask: Tensor, options: TemporalOptions
) -> tuple[Tensor, Tensor]:
    """Losses fp32 [b] and logits fp32 [b, T] of contiguous inputs; masks are bool or uint8."""
    batch, count, width = segments.shape
    losses = segments.new_empty((batch,), dtype=torch.float32)
    logits = segments.new_empty((batch, count), dtype=torch.float32)
    launch(
        temporal_forward_kernel,
        (batch,),
        segments,
        as_bytes(paste_mask),
        as_bytes(options.segment_mask),
        losses,
        logits,
        count,
        1.0 / options.temperature,
        WIDTH=width,
        SQUARED=options.loss == "mse",
        **bce_blocks(count, width),
    )
    return losses, logits


def pool_forward(
    tokens: Tensor, segment_index: Tensor, num_segments: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Segments [b, T, C] and counts fp32 [b, T] of contiguous inputs; the mask is bool or uint8."""
    batch, length, width = tokens.shape
    segments = tokens.new_empty((batch, num_segments, width))
    counts = tokens.new_empty((batch, num_segments), dtype=torch.float32)
    launch(
        segment_pool_forward_kernel,
        (batch * triton.cdiv(width, POOL_COLUMNS),),
        tokens,
        segment_index,
        as_bytes(token_mask),
        segments,
        counts,
        length,
        WIDTH=width,
        SEGMENTS=num_segments,
        SHARED_INDEX=segment_index.dim() == 1,
        BLOCK_L=POOL_TOKENS if tokens.element_size() == 2 else POOL_TOKENS // 2,
        BLOCK_C=POOL_COLUMNS,
        BLOCK_T=max(16, triton.next_power_of_2(num_segments)),
        UPCAST=interpreted() and tokens.dtype == torch.bfloat16,
        num_warps=8,
        num_stages=4,
    )
    return segments, counts
