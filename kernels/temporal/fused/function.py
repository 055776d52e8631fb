"""Operators and autograd of the fused temporal ops, with fake implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...operators import define, dense, first_derivative_only
from ..options import TemporalOptions
from .backward import bce_backward as launch_bce_backward
from .backward import pool_backward
from .forward import bce_forward as launch_bce_forward
from .forward import pool_forward as launch_pool_forward

_LIBRARY = torch.library.Library("svilm_temporal", "DEF")
_CALL = "Tensor segments, Tensor paste_mask, Tensor? segment_mask, float temperature, str loss"
_SIGNATURES = {
    "bce_forward": f"({_CALL}) -> (Tensor, Tensor)",
    "bce_backward": f"(Tensor upstream, {_CALL}, Tensor logits) -> Tensor",
    "pool_forward": "(Tensor tokens, Tensor segment_index, int num_segments, Tensor? token_mask)"
    " -> (Tensor, Tensor, Tensor)",
    "pool_backward": "(Tensor d_segments, Tensor segment_index, Tensor? token_mask, Tensor counts,"
    " int length) -> Tensor",
}


def bce_forward(segments: Tensor, paste_mask: Tensor, *packed: Any) -> tuple[Tensor, Tensor]:
    """The loss (0-dim fp32) and the logits, from contiguous inputs."""
    losses, logits = launch_bce_forward(segments, paste_mask, TemporalOptions(*packed))
    return losses.sum() / max(len(segments), 1), logits


def bce_backward(upstream: Tensor, segments: Tensor, paste_mask: Tensor, *rest: Any) -> Tensor:
    """The gradient of the segments; `rest` are the packed options and the logits."""
    *packed, logits = rest
    return launch_bce_backward(upstream, segments, paste_mask, TemporalOptions(*packed), logits)


def pool_forward(
    tokens: Tensor, segment_index: Tensor, num_segments: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, which of them have tokens, and their counts, from contiguous inputs."""
    segments, counts = launch_pool_forward(tokens, segment_index, num_segments, token_mask)
    return segments, counts > 0, counts


def _fake_bce_forward(segments, paste_mask, segment_mask, temperature, loss):
    def fresh(*shape):
        return segments.new_empty(shape, dtype=torch.float32)

    return fresh(), fresh(*paste_mask.shape)


def _fake_bce_backward(upstream, segments, *_):
    return torch.empty_like(segments)


def _fake_pool_forward(tokens, segment_index, num_segments, token_mask):
    shape = (tokens.shape[0], num_segments)
    segments = tokens.new_empty((*shape, tokens.shape[2]))
    present = tokens.new_empty(shape, dtype=torch.bool)
    return segments, present, tokens.new_empty(shape, dtype=torch.float32)


def _fake_pool_backward(d_segments, segment_index, token_mask, counts, length):
    return d_segments.new_empty((d_segments.shape[0], length, d_segments.shape[2]))


for _implementation, _fake in (
    (bce_forward, _fake_bce_forward),
    (bce_backward, _fake_bce_backward),
    (pool_forward, _fake_pool_forward),
    (pool_backward, _fake_pool_backward),
):
    _name = _implementation.__name__
    define(_LIBRARY, _name, _SIGNATURES[_name], _implementation, _fake)

_ops = torch.ops.svilm_temporal


class TemporalBCE(torch.autograd.Function):
    """Saves the inputs and the logits."""

    @staticmethod
    def forward(ctx: Any, *call: Any):  # type: ignore[override]
        value, logits = _ops.bce_forward(*call)
        ctx.save_for_backward(*call[:3], logits)
        ctx.settings = call[3:]
        return value

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, upstream):  # type: ignore[override]
        *tensors, logits = ctx.saved_tensors
        return _ops.bce_backward(upstream, *tensors, *ctx.settings, logits), *(None,) * 4


class SegmentPool(torch.autograd.Function):
    """Saves the index, the mask and the counts, not the tokens."""

    @staticmethod
    def forward(ctx: Any, tokens, segment_index, num_segments, token_mask):  # type: ignore[override]
        segments, present, counts = _ops.pool_forward(
            tokens, segment_index, num_segments, token_mask
        )
        ctx.save_for_backward(segment_index, token_mask, counts)
        ctx.length = tokens.shape[1]
        ctx.mark_non_differentiable(present)
        return segments, present

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, d_segments, _):  # type: ignore[override]
        upstream = d_segments.contiguous()
        return _ops.pool_backward(upstream, *ctx.saved_tensors, ctx.length), *(None,) * 3


def fused_temporal_bce(segments: Tensor, paste_mask: Tensor, options: TemporalOptions) -> Tensor:
    """`api.temporal_bce` through the Triton kernels, without its checks."""
    segment_mask, temperature, loss = options.packed()
    tensors = (dense(value) for value in (segments, paste_mask, segment_mask))
    return TemporalBCE.apply(*tensors, temperature, loss)


def fused_segment_pool(
    tokens: Tensor, segment_index: Tensor, num_segments: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`api.segment_pool` through the Triton kernels, without its checks."""
    return SegmentPool.apply(
        tokens.contiguous(), segment_index.contiguous(), num_segments, dense(token_mask)
    )
