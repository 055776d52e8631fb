"""Operators and autograd of the fused path: one operator each way, with fake implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svilm_fast.kernels.operators import define, first_derivative_only, wanted

from . import backward as backward_kernels
from . import forward as forward_kernels
from . import matrix as matrix_kernels
from .backward import ForwardBuffers, LossContext, Needs
from .layout import Layout, layout_of, needs_copy
from .matrix import MatrixStatistics

_LIBRARY = torch.library.Library("svilm_grounding", "DEF")


def _float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float32 else value.float()


def scores_forward(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores [b, c] and the kernel buffers of groups (empty if not copied), nouns and weights."""
    return _scores_and_valid(groups, nouns, noun_mask, beta)[0]


def _scores_and_valid(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    layout = layout_of(groups, nouns)
    copy, rows, weights, valid = forward_kernels.prepare(groups, nouns, noun_mask, layout)
    tokens = copy if copy.numel() else groups
    scores = forward_kernels.launch_scores(tokens, rows, weights, beta, layout)
    return (scores, copy, rows, weights), valid


def scores_backward(
    upstream: Tensor, groups: Tensor, nouns: Tensor, weights: Tensor, beta: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of groups, nouns and beta from kernel buffers; empty where not needed."""
    prepared = ForwardBuffers(groups, nouns, weights)
    return _gradients(_float32(upstream).contiguous(), prepared, beta, rest)[:3]


def loss_forward(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, scores, log sums, N, and the kernel buffers as in `scores_forward`."""
    (scores, copy, rows, weights), valid = _scores_and_valid(groups, nouns, noun_mask, beta)
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
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of groups, nouns, beta and scale; empty where not needed."""
    loss = LossContext(scores, scale, MatrixStatistics(upstream, lse, count))
    return _gradients(upstream, ForwardBuffers(groups, nouns, weights), beta, rest, loss)


def _gradients(
    upstream: Tensor,
    prepared: ForwardBuffers,
    beta: Tensor,
    rest: tuple[Any, ...],
    loss: LossContext | None = None,
) -> backward_kernels.GroundingGradients:
    """`rest` are the arguments from `num_groups` on, which both signatures share."""
    num_groups, num_nouns, dim, dtype, *needs, workspace_bytes = rest
    videos, captions = (upstream if loss is None else loss.scores).shape
    layout = Layout(videos, captions, num_groups, num_nouns, dim, prepared.nouns.dtype)
    return backward_kernels.backward(
        prepared._replace(groups=prepared.groups.view(-1, layout.padded_dim)),
        beta,
        layout,
        Needs(*needs),
        dtype,
        upstream,
        workspace_bytes,
        loss,
    )


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
    """Gradients of the scores and the scale."""
    flags = None if valid is None else valid.contiguous().view(torch.int8)
    statistics = MatrixStatistics(upstream, lse, count)
    return matrix_kernels.matrix_backward(scores.contiguous(), scale, flags, statistics, upstream)


_SIGNATURES = {
    "scores_forward": "(Tensor groups, Tensor nouns, Tensor noun_mask, Tensor beta)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "scores_backward": "(Tensor upstream, Tensor groups, Tensor nouns, Tensor weights, Tensor beta,"
    " int num_groups, int num_nouns, int dim, ScalarType dtype, bool need_groups, bool need_nouns,"
    " bool need_beta, SymInt workspace_bytes) -> (Tensor, Tensor, Tensor)",
    "loss_forward": "(Tensor groups, Tensor nouns, Tensor noun_mask, Tensor beta, Tensor scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "loss_backward": "(Tensor upstream, Tensor scores, Tensor lse, Tensor count, Tensor groups,"
    " Tensor nouns, Tensor weights, Tensor beta, Tensor scale, int num_groups, int num_nouns,"
    " int dim, ScalarType dtype, bool need_groups, bool need_nouns, bool need_beta,"
    " bool need_scale, SymInt workspace_bytes) -> (Tensor, Tensor, Tensor, Tensor)",
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


def _fake_scores_backward(scores, groups, nouns, weights, beta, *rest):
    num_groups, num_nouns, dim, dtype, need_groups, need_nouns, need_beta, *_ = rest
    videos, captions = scores.shape
    return (
        scores.new_empty((videos, num_groups, dim) if need_groups else (0,), dtype=dtype),
        scores.new_empty((captions, num_nouns, dim) if need_nouns else (0,), dtype=dtype),
        beta.new_empty(() if need_beta else (0,)),
    )


def _fake_loss_backward(upstream, scores, lse, count, groups, nouns, weights, beta, scale, *rest):
    gradients = _fake_scores_backward(scores, groups, nouns, weights, beta, *rest)
    need_scale = rest[-2]
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
    define(_LIBRARY, _name, _SIGNATURES[_name], _implementation, _fake)

_ops = torch.ops.svilm_grounding


def _sizes(groups: Tensor, nouns: Tensor) -> tuple[int, int, int, torch.dtype]:
    return groups.shape[1], nouns.shape[1], groups.shape[2], groups.dtype


def _input_gradients(ctx: Any, operator: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of groups, nouns, noun_mask and scalars, for `GroundingScores` and the loss."""
    need_groups, need_nouns, _, *scalars, _, _ = ctx.needs_input_grad
    needs = (need_groups, need_nouns, *scalars)
    *saved, _ = ctx.saved_tensors
    found = operator(upstream, *saved, *ctx.sizes, *needs, ctx.workspace_bytes)
    groups, nouns, *scalars = wanted(needs, found)
    return groups, nouns, None, *scalars, None, None


class GroundingScores(torch.autograd.Function):
    """Scores of all pairs; saves the kernel buffers of the inputs and their `anchor`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, groups, nouns, noun_mask, beta, workspace_bytes, anchored
    ):
        scores, copy, rows, weights = _ops.scores_forward(groups, nouns, noun_mask, beta)
        ctx.save_for_backward(copy if copy.numel() else groups, rows, weights, beta, anchored)
        ctx.sizes = _sizes(groups, nouns)
        ctx.workspace_bytes = workspace_bytes
        return scores

    @staticmethod
    @first_derivative_only
    def backward(ctx, upstream):  # type: ignore[override]
        return _input_gradients(ctx, _ops.scores_backward, upstream)


class GroundingLoss(torch.autograd.Function):
    """The loss of a batch; saves as `GroundingScores`, and the scores and their log sums."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, groups, nouns, noun_mask, beta, scale, workspace_bytes, anchored
    ):
        loss, scores, lse, count, copy, rows, weights = _ops.loss_forward(
            groups, nouns, noun_mask, beta, scale
        )
        tokens = copy if copy.numel() else groups
        ctx.save_for_backward(scores, lse, count, tokens, rows, weights, beta, scale, anchored)
        ctx.sizes = _sizes(groups, nouns)
        ctx.workspace_bytes = workspace_bytes
        return loss

    @staticmethod
    @first_derivative_only
    def backward(ctx, upstream):  # type: ignore[override]
        return _input_gradients(ctx, _ops.loss_backward, upstream)


class MatrixInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE of a float32 score matrix; saves the matrix and its log sums."""

    @staticmethod
    def forward(ctx, scores, scale, valid):  # type: ignore[override]
        loss, lse, count = _ops.matrix_forward(scores, scale, valid)
        ctx.save_for_backward(scores, scale, valid, lse, count)
        return loss

    @staticmethod
    @first_derivative_only
    def backward(ctx, upstream):  # type: ignore[override]
        gradients = _ops.matrix_backward(upstream, *ctx.saved_tensors)
        return *wanted(ctx.needs_input_grad[:2], gradients), None
