"""Foreground against background of one sample: centres, logits and loss in one pass over columns.

The centres' difference and its part of every logit belong to a column alone, so both directions
read the segments once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launch

_TILE_ELEMENTS = 8192


@triton.jit
def _load_sides(paste_mask, segment_mask, sample, segments, BLOCK_T: tl.constexpr):
    """Which of the sample's segments are foreground and which are there, what weights them in the
    difference of the centres, and the counts of foreground and background.
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
    direction = foreground / tl.maximum(n_foreground, 1.0) - background / tl.maximum(
        n_background, 1.0
    )
    return foreground, present, direction, n_foreground, n_background


@triton.jit
def _load_columns(
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
def _log1p(x):
    """log(1 + x) for x in [0, 1], exact to a few ulp also where 1 + x rounds (Kahan)."""
    shifted = 1.0 + x
    rounded = shifted == 1.0
    return tl.where(rounded, x, tl.log(shifted) * x / tl.where(rounded, 1.0, shifted - 1.0))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _error(logit, foreground):
    """sigmoid(logit) - foreground without the cancellation where the two are nearly equal."""
    return tl.where(foreground > 0, -_sigmoid(-logit), _sigmoid(logit))


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
    foreground, present, direction, n_foreground, n_background = _load_sides(
        paste_mask, segment_mask, sample, segments, BLOCK_T
    )
    logit = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        z = _load_columns(
            rows + sample * segments * WIDTH, present > 0, start, segments, WIDTH, BLOCK_T, BLOCK_D
        )
        difference = tl.sum(direction[:, None] * z, axis=0)
        logit += tl.sum(z * difference[None, :], axis=1)
    logit = logit * inverse_temperature
    if SQUARED:
        error = _error(logit, foreground)
        terms = error * error
    else:
        terms = tl.maximum(logit, 0.0) - logit * foreground + _log1p(tl.exp(-tl.abs(logit)))
    both = (n_foreground > 0) & (n_background > 0)
    mean = tl.sum(terms * present, axis=0) / tl.maximum(n_foreground + n_background, 1.0)
    tl.store(losses + sample, tl.where(both, mean, 0.0))
    tl.store(logits + sample * segments + place, logit, mask=place < segments)


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
    """The gradient at one sample's segments, through the logits and through the centres."""
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_T)
    foreground, present, direction, n_foreground, n_background = _load_sides(
        paste_mask, segment_mask, sample, segments, BLOCK_T
    )
    logit = tl.load(logits + sample * segments + place, mask=place < segments, other=0.0)
    slope = _error(logit, foreground)
    if SQUARED:
        slope = 2.0 * slope * _sigmoid(logit) * _sigmoid(-logit)
    both = (n_foreground > 0) & (n_background > 0)
    counted = tl.maximum(n_foreground + n_background, 1.0) * batch.to(tl.float32)
    factor = tl.load(upstream) * inverse_temperature / counted
    slope = tl.where(both, slope * present * factor, 0.0)
    for start in range(0, WIDTH, BLOCK_D):
        z = _load_columns(
            rows + sample * segments * WIDTH, present > 0, start, segments, WIDTH, BLOCK_T, BLOCK_D
        )
        difference = tl.sum(direction[:, None] * z, axis=0)
        through_centres = tl.sum(slope[:, None] * z, axis=0)
        d_z = slope[:, None] * difference[None, :] + direction[:, None] * through_centres[None, :]
        column = start + tl.arange(0, BLOCK_D)
        mask = (place < segments)[:, None] & (column < WIDTH)[None, :]
        pointers = (sample * segments + place[:, None]) * WIDTH + column[None, :]
        tl.store(gradient + pointers, d_z.to(gradient.dtype.element_ty), mask=mask)


def _blocks(segments: int, width: int) -> dict[str, int]:
    block_segments = triton.next_power_of_2(max(segments, 2))
    block_width = min(triton.next_power_of_2(width), max(16, _TILE_ELEMENTS // block_segments))
    return {"BLOCK_T": block_segments, "BLOCK_D": block_width, "num_warps": 4}


def forward(
    segments: Tensor,
    paste_mask: Tensor,
    segment_mask: Tensor | None,
    temperature: float,
    loss: str,
) -> tuple[Tensor, Tensor]:
    """Losses fp32 [b] and logits fp32 [b, T] of contiguous inputs; masks are uint8."""
    batch, count, width = segments.shape
    losses = segments.new_empty((batch,), dtype=torch.float32)
    logits = segments.new_empty((batch, count), dtype=torch.float32)
    launch(
        temporal_forward_kernel,
        (batch,),
        segments,
        paste_mask,
        segment_mask,
        losses,
        logits,
        count,
        1.0 / temperature,
        WIDTH=width,
        SQUARED=loss == "mse",
        **_blocks(count, width),
    )
    return losses, logits


def backward(
    upstream: Tensor,
    segments: Tensor,
    paste_mask: Tensor,
    segment_mask: Tensor | None,
    logits: Tensor,
    temperature: float,
    loss: str,
) -> Tensor:
    """Gradient at the segments; `upstream` is the 0-dim fp32 gradient of the loss."""
    batch, count, width = segments.shape
    gradient = torch.empty_like(segments)
    launch(
        temporal_backward_kernel,
        (batch,),
        upstream,
        segments,
        paste_mask,
        segment_mask,
        logits,
        gradient,
        count,
        batch,
        1.0 / temperature,
        WIDTH=width,
        SQUARED=loss == "mse",
        **_blocks(count, width),
    )
    return gradient
