"""Operators and autograd of the fused path: one operator each way, with fake implementations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backward as backward_kernels
from . import forward as forward_kernels
from . import matrix as matrix_kernels
from .backward import LossContext, Needs, Prepared
from .layout import Layout, layout_of, needs_copy
from .matrix import MatrixStatistics

_LIBRARY = torch.library.Library("svilm_grounding", "DEF")


def _float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float32 else value.float()


def scores_forward(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores [b, c] and the kernel buffers of groups (empty: no copy), nouns and weights."""
    layout = layout_of(groups, nouns)
    copy, rows, weights, _ = forward_kernels.prepare(groups, nouns, noun_mask, layout)
    tokens = copy if copy.numel() else groups
    return forward_kernels.launch_scores(tokens, rows, weights, beta, layout), copy, rows, weights


def scores_backward(
    upstream: Tensor,
    groups: Tensor,
    nouns: Tensor,
    weights: Tensor,
    beta: Tensor,
    num_groups: int,
    num_nouns: int,
    dim: int,
    dtype: torch.dtype,
    need_groups: bool,
    need_nouns: bool,
    need_beta: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by groups, nouns and beta from kernel buffers; empty where not needed."""
    videos, captions = upstream.shape
    layout = Layout(videos, captions, num_groups, num_nouns, dim, nouns.dtype)
    gradients = backward_kernels.backward(
        Prepared(groups.view(-1, layout.padded_dim), nouns, weights),
        beta,
        layout,
        Needs(need_groups, need_nouns, need_beta),
        dtype,
        _float32(upstream).contiguous(),
        workspace_bytes,
    )
    return gradients.groups, gradients.nouns, gradients.beta


def loss_forward(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss; scores, log sums and N; and the kernel buffers as in `scores_forward`."""
    layout = layout_of(groups, nouns)
    copy, rows, weights, valid = forward_kernels.prepare(groups, nouns, noun_mask, layout)
    tokens = copy if copy.numel() else groups
    scores = forward_kernels.launch_scores(tokens, rows, weights, beta, layout)
    loss, lse, count = matrix_kernels.matrix_forward(scores, scale, valid)
    return loss, scores, lse, count, copy, rows, weights


def loss_backward(
    upstream: Tensor,
    scores: Tensor,
    lse: Tensor,
    count: Tensor,
    groups: Tensor,
    nouns: Tensor,
    weights: Tensor,
    beta: Tensor,
    scale: Tensor,
    num_groups: int,
    num_nouns: int,
    dim: int,
    dtype: torch.dtype,
    need_groups: bool,
    need_nouns: bool,
    need_beta: bool,
    need_scale: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by groups, nouns, beta and scale; empty where not needed."""
    videos, captions = scores.shape
    layout = Layout(videos, captions, num_groups, num_nouns, dim, nouns.dtype)
    gradients = backward_kernels.backward(
        Prepared(groups.view(-1, layout.padded_dim), nouns, weights),
        beta,
        layout,
        Needs(need_groups, need_nouns, need_beta, need_scale),
        dtype,
        upstream,
        workspace_bytes,
        LossContext(scores, scale, MatrixStatistics(upstream, lse, count)),
    )
    return gradients.groups, gradients.nouns, gradients.beta, gradients.scale


def matrix_forward(
    scores: Tensor, scale: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log sums [2, n] and N of a float32 score matrix."""
    flags = None if valid is None else valid.contiguous().view(torch.int8)
    loss, lse, count = matrix_kernels.matrix_forward(scores.contiguous(), scale, flags)
    return loss, lse, count


def matrix_backward(
    upstream: Tensor,
    scores: Tensor,
    scale: Tensor,
    valid: Tensor | None,
    lse: Tensor,
    count: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients by the scores and the scale."""
    flags = None if valid is None else valid.contiguous().view(torch.int8)
    statistics = MatrixStatistics(upstream, lse, count)
    return matrix_kernels.matrix_backward(scores.contiguous(), scale, flags, statistics, upstream)


_SIGNATURES = {
    "scores_forward": "(Tensor groups, Tensor nouns, Tensor noun_mask, Tensor beta)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "scores_backward": "(Tensor upstream, Tensor groups, Tensor nouns, Tensor weights, Tensor beta,"
    " int num_groups, int num_nouns, int dim, ScalarType dtype, bool need_groups, bool need_nouns,"
    " bool need_beta, int workspace_bytes) -> (Tensor, Tensor, Tensor)",
    "loss_forward": "(Tensor groups, Tensor nouns, Tensor noun_mask, Tensor beta, Tensor scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "loss_backward": "(Tensor upstream, Tensor scores, Tensor lse, Tensor count, Tensor groups,"
    " Tensor nouns, Tensor weights, Tensor beta, Tensor scale, int num_groups, int num_nouns,"
    " int dim, ScalarType dtype, bool need_groups, bool need_nouns, bool need_beta,"
    " bool need_scale, int workspace_bytes) -> (Tensor, Tensor, Tensor, Tensor)",
    "matrix_forward": "(Tensor scores, Tensor scale, Tensor? valid) -> (Tensor, Tensor, Tensor)",
    "matrix_backward": "(Tensor upstream, Tensor scores, Tensor scale, Tensor? valid, Tensor lse,"
    " Tensor count) -> (Tensor, Tensor)",
}


def _fake_buffers(groups: Tensor, nouns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layout = layout_of(groups, nouns)
    rows = layout.videos * layout.padded_groups if needs_copy(groups, layout) else 0
    return (
        groups.new_empty((rows, layout.padded_dim), dtype=layout.dtype),
        groups.new_empty((layout.rows, layout.padded_dim), dtype=layout.dtype),
        groups.new_empty((layout.captions, layout.padded_nouns), dtype=torch.float32),
    )


def _fake_scores_forward(groups, nouns, noun_mask, beta):
    scores = groups.new_empty((groups.shape[0], nouns.shape[0]), dtype=torch.float32)
    return scores, *_fake_buffers(groups, nouns)


def _fake_loss_forward(groups, nouns, noun_mask, beta, scale):
    scores, *buffers = _fake_scores_forward(groups, nouns, noun_mask, beta)
    lse = scores.new_empty((2, scores.shape[0]))
    return scores.new_empty(()), scores, lse, scores.new_empty(()), *buffers


def _fake_gradients(
    scores, num_groups, num_nouns, dim, dtype, need_groups, need_nouns, beta, need_beta
):
    videos, captions = scores.shape
    return (
        scores.new_empty((videos, num_groups, dim) if need_groups else (0,), dtype=dtype),
        scores.new_empty((captions, num_nouns, dim) if need_nouns else (0,), dtype=dtype),
        beta.new_empty(() if need_beta else (0,)),
    )


def _fake_scores_backward(
    upstream,
    groups,
    nouns,
    weights,
    beta,
    num_groups,
    num_nouns,
    dim,
    dtype,
    need_groups,
    need_nouns,
    need_beta,
    workspace_bytes,
):
    return _fake_gradients(
        upstream, num_groups, num_nouns, dim, dtype, need_groups, need_nouns, beta, need_beta
    )


def _fake_loss_backward(
    upstream,
    scores,
    lse,
    count,
    groups,
    nouns,
    weights,
    beta,
    scale,
    num_groups,
    num_nouns,
    dim,
    dtype,
    need_groups,
    need_nouns,
    need_beta,
    need_scale,
    workspace_bytes,
):
    gradients = _fake_gradients(
        scores, num_groups, num_nouns, dim, dtype, need_groups, need_nouns, beta, need_beta
    )
    return *gradients, scale.new_empty(() if need_scale else (0,))


def _fake_matrix_forward(scores, scale, valid):
    lse = scores.new_empty((2, scores.shape[0]))
    return scores.new_empty(()), lse, scores.new_empty(())


def _fake_matrix_backward(upstream, scores, scale, valid, lse, count):
    return scores.new_empty(scores.shape), torch.empty_like(scale)


for _implementation, _fake in (
    (scores_forward, _fake_scores_forward),
    (scores_backward, _fake_scores_backward),
    (loss_forward, _fake_loss_forward),
    (loss_backward, _fake_loss_backward),
    (matrix_forward, _fake_matrix_forward),
    (matrix_backward, _fake_matrix_backward),
):
    _name = _implementation.__name__
    _LIBRARY.define(_name + _SIGNATURES[_name])
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _implementation, _device)
    torch.library.register_fake(f"svilm_grounding::{_name}", _fake, lib=_LIBRARY)

_ops = torch.ops.svilm_grounding


class GroundingScores(torch.autograd.Function):
    """Scores of all pairs; saves the inputs in the kernels' layout and nothing else."""

    @staticmethod
    def forward(ctx, groups, nouns, noun_mask, beta, workspace_bytes):  # type: ignore[override]
        scores, copy, rows, weights = _ops.scores_forward(groups, nouns, noun_mask, beta)
        ctx.save_for_backward(copy if copy.numel() else groups, rows, weights, beta)
        ctx.sizes = (groups.shape[1], nouns.shape[1], groups.shape[2], groups.dtype)
        ctx.workspace_bytes = workspace_bytes
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[override]
        need_groups, need_nouns, _, need_beta, _ = ctx.needs_input_grad
        groups, nouns, beta = _wanted(
            ctx,
            _ops.scores_backward(
                upstream,
                *ctx.saved_tensors,
                *ctx.sizes,
                need_groups,
                need_nouns,
                need_beta,
                ctx.workspace_bytes,
            ),
            (0, 1, 3),
        )
        return groups, nouns, None, beta, None


class GroundingLoss(torch.autograd.Function):
    """The loss of a batch in one piece: saves the inputs, the scores and their log sums."""

    @staticmethod
    def forward(ctx, groups, nouns, noun_mask, beta, scale, workspace_bytes):  # type: ignore[override]
        loss, scores, lse, count, copy, rows, weights = _ops.loss_forward(
            groups, nouns, noun_mask, beta, scale
        )
        tokens = copy if copy.numel() else groups
        ctx.save_for_backward(scores, lse, count, tokens, rows, weights, beta, scale)
        ctx.sizes = (groups.shape[1], nouns.shape[1], groups.shape[2], groups.dtype)
        ctx.workspace_bytes = workspace_bytes
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[override]
        need_groups, need_nouns, _, need_beta, need_scale, _ = ctx.needs_input_grad
        groups, nouns, beta, scale = _wanted(
            ctx,
            _ops.loss_backward(
                upstream,
                *ctx.saved_tensors,
                *ctx.sizes,
                need_groups,
                need_nouns,
                need_beta,
                need_scale,
                ctx.workspace_bytes,
            ),
            (0, 1, 3, 4),
        )
        return groups, nouns, None, beta, scale, None


class MatrixInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE of a float32 score matrix; saves it and its log sums."""

    @staticmethod
    def forward(ctx, scores, scale, valid):  # type: ignore[override]
        loss, lse, count = _ops.matrix_forward(scores, scale, valid)
        ctx.save_for_backward(scores, scale, valid, lse, count)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[override]
        gradients = _ops.matrix_backward(upstream, *ctx.saved_tensors)
        return *_wanted(ctx, gradients, (0, 1)), None


def _wanted(ctx, gradients, positions):
    return tuple(
        gradient if ctx.needs_input_grad[position] else None
        for gradient, position in zip(gradients, positions)
    )
