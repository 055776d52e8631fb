"""Backward kernels of the temporal ops: gradients of the segments and of the tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launch
from ...primitives import sigmoid
from ..options import TemporalOptions
from .forward import as_bytes, error_of, load_columns, load_index, load_sides
from .layout import POOL_COLUMNS, POOL_TOKENS, bce_blocks


@triton.jit(do_not_specialize=["segments", "batch"])
def temporal_backward_kernel(
    upstream,
    rows,
    paste_mask,
    segment_mask,
    logits,
    gradient,
    segments,
    batch,
    inverse_temperature,
    WIDTH: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one sample's segments, through the logits and through the centres."""
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_T)
    foreground, present, direction, n_foreground, n_background = load_sides(
        paste_mask, segment_mask, sample, segments, BLOCK_T
    )
    logit = tl.load(logits + sample * segments + place, mask=place < segments, other=0.0)
    # dBCE/dlogit_t = sigmoid(logit_t) - m_t
    slope = error_of(logit, foreground)
    if SQUARED:
        # d(sigmoid - m)^2/dlogit_t = 2 (sigmoid - m) sigmoid (1 - sigmoid)
        slope = 2.0 * slope * sigmoid(logit) * sigmoid(-logit)
    both = (n_foreground > 0) & (n_background > 0)
    counted = tl.maximum(n_foreground + n_background, 1.0) * batch.to(tl.float32)
    factor = tl.load(upstream) * inverse_temperature / counted
    slope = tl.where(both, slope * present * factor, 0.0)
    for start in range(0, WIDTH, BLOCK_D):
        z = load_columns(
            rows + sample * segments * WIDTH, present > 0, start, segments, WIDTH, BLOCK_T, BLOCK_D
        )
        difference = tl.sum(direction[:, None] * z, axis=0)
        through_centres = tl.sum(slope[:, None] * z, axis=0)
        # dz_t = g_t v + (m_t / F - (1 - m_t) / B) sum_s g_s z_s
        d_z = slope[:, None] * difference[None, :] + direction[:, None] * through_centres[None, :]
        column = start + tl.arange(0, BLOCK_D)
        mask = (place < segments)[:, None] & (column < WIDTH)[None, :]
        pointers = (sample * segments + place[:, None]) * WIDTH + column[None, :]
        tl.store(gradient + pointers, d_z.to(gradient.dtype.element_ty), mask=mask)


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
    """The gradient of a tile of tokens: the gradient of their segments divided by the counts."""
    tiles = (length + BLOCK_L - 1) // BLOCK_L
    program = tl.program_id(0).to(tl.int64)
    sample = program // tiles
    token = (program % tiles).to(tl.int32) * BLOCK_L + tl.arange(0, BLOCK_L)
    label = load_index(segment_index, token_mask, sample, token, length, SEGMENTS, SHARED_INDEX)
    belongs = label >= 0
    segment = sample * SEGMENTS + tl.where(belongs, label, 0)
    # dx_l = dsegment_t / (number of tokens of t)
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


def bce_backward(
    upstream: Tensor,
    segments: Tensor,
    paste_mask: Tensor,
    options: TemporalOptions,
    logits: Tensor,
) -> Tensor:
    """Gradient of the segments; `upstream` is the 0-dim fp32 gradient of the loss."""
    batch, count, width = segments.shape
    gradient = torch.empty_like(segments)
    launch(
        temporal_backward_kernel,
        (batch,),
        upstream,
        segments,
        as_bytes(paste_mask),
        as_bytes(options.segment_mask),
        logits,
        gradient,
        count,
        batch,
        1.0 / options.temperature,
        WIDTH=width,
        SQUARED=options.loss == "mse",
        **bce_blocks(count, width),
    )
    return gradient


def pool_backward(
    d_segments: Tensor,
    segment_index: Tensor,
    token_mask: Tensor | None,
    counts: Tensor,
    length: int,
) -> Tensor:
    """Gradient of the tokens [b, length, C]."""
    batch, num_segments, width = d_segments.shape
    d_tokens = d_segments.new_empty((batch, length, width))
    launch(
        segment_pool_backward_kernel,
        (batch * triton.cdiv(length, POOL_TOKENS),),
        d_segments,
        segment_index,
        as_bytes(token_mask),
        counts,
        d_tokens,
        length,
        WIDTH=width,
        SEGMENTS=num_segments,
        SHARED_INDEX=segment_index.dim() == 1,
        BLOCK_L=POOL_TOKENS,
        BLOCK_C=POOL_COLUMNS,
        num_warps=4,
    )
    return d_tokens
