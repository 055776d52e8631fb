"""The oracle: symmetric InfoNCE in plain PyTorch, by chunks of rows, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..operators import (
    define,
    distinct,
    first_derivative_only,
    gradient_buffers,
    wanted,
    without_autocast,
    without_values,
)
from .block import (
    DEFAULT_WORKSPACE_BYTES,
    LIVE_MATRICES,
    LogitsBlock,
    dots_gradient,
    input_gradients,
    log_sums,
    powers_of,
)
from .options import InfonceOptions
from .pairs import PairMode, diagonal_range, shared_loss


def _forward(
    videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lse, column lse and positives, by chunks of rows."""
    with without_autocast(videos):
        block = LogitsBlock(videos, texts, scale, InfonceOptions.unpacked(*packed))
        row_lse = torch.empty(videos.shape[0], dtype=block.dtype, device=videos.device)
        column_lse = row_lse.new_full((texts.shape[0],), -torch.inf)
        positives = torch.empty_like(row_lse)
        for rows in block.chunks():
            logits = block.logits(rows)
            positives[rows] = block.positives(logits, rows)
            lines = log_sums(block, rows, logits)[0]
            row_lse[rows] = lines[: -texts.shape[0]]
            column_lse = torch.logaddexp(column_lse, lines[-texts.shape[0] :])
        return row_lse, column_lse, positives


def _backward(
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    need_videos: bool,
    need_texts: bool,
    need_scale: bool,
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of videos, texts and scale; empty where not needed. Computes the logits again."""
    with without_autocast(videos):
        block = LogitsBlock(videos, texts, scale, InfonceOptions.unpacked(*packed))

        def chunk(rows: slice) -> tuple[slice, Tensor]:
            lines = torch.cat((row_lse[rows], column_lse))
            upstream = torch.cat((grad_row[rows], grad_column))
            matrix, factors = powers_of(block.logits(rows), lines)
            found = dots_gradient(matrix, factors, lines, upstream)
            block.add_positives(found, rows, grad_positive)
            return rows, found

        needs = need_videos, need_texts, need_scale
        grad_videos, grad_texts, total = input_gradients(
            map(chunk, block.chunks()), needs, videos, texts, block.alpha, block.rest
        )
        grad_scale = total if block.alpha == 1.0 else total / block.scale
        return grad_videos, grad_texts, grad_scale.to(scale.dtype)


def _whole_fits(videos: Tensor, texts: Tensor, options: InfonceOptions) -> bool:
    """Whether `_whole_loss` takes a call: on a CPU, if what it holds fits the workspace.

    It holds two matrices [m, n], and up to two more with pair ids.
    """
    if not videos.is_cpu or (options.ids is not None and options.shared_lists is not None):
        return False
    size = videos.shape[0] * texts.shape[0] * compute_dtype(videos).itemsize
    matrices = 2 if options.ids is None else LIVE_MATRICES
    return matrices * size <= (options.workspace_bytes or DEFAULT_WORKSPACE_BYTES)


def _whole_loss(
    keep: bool, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
) -> tuple[Tensor, Tensor]:
    return _whole(keep, videos, texts, scale, InfonceOptions.unpacked(*packed))


def _whole(
    keep: bool, videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Tensor, Tensor]:
    """The loss without a loop, and dS [m, n] of 2P times the loss (empty unless `keep`)."""
    with without_autocast(videos):
        block = LogitsBlock(videos, texts, scale, options)
        rows, columns = videos.shape[0], texts.shape[0]
        every = slice(0, rows)
        logits = block.logits(every)
        positives = block.positives(logits, every)
        lines, matrix, factors = log_sums(block, every, logits, keep=keep)
        del logits
        offset, counted = options.diagonal_offset, None
        start, stop = diagonal_range(rows, columns, offset)
        if stop - start == rows == columns:
            loss = (lines.view(2, rows) - positives).mean()
        else:
            counted = torch.zeros_like(lines)
            counted[start:stop] = 1.0
            counted[rows + offset + start : rows + offset + stop] = 1.0
            loss = loss_of_partials(lines[:rows], lines[rows:], positives, offset)
        if not keep:
            return loss, lines.new_empty((0,))
        kept = dots_gradient(matrix, factors, lines, counted)
        del matrix
        block.add_positives(kept, every, -2.0)
        return loss, kept


def _whole_gradient(
    upstream: Tensor,
    kept: Tensor,
    need_videos: bool,
    need_texts: bool,
    need_scale: bool,
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    diagonal_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of videos, texts and scale of `_whole_loss`; empty where not needed."""
    with without_autocast(videos):
        start, stop = diagonal_range(kept.shape[0], kept.shape[1], diagonal_offset)
        scale_in_dtype = scale if scale.dtype == kept.dtype else scale.to(kept.dtype)
        alpha = float(scale_in_dtype) * float(upstream) / (2 * (stop - start))
        # 0 stays out of the products, as in `LogitsBlock`.
        rest = None if alpha else 0.0
        needs = need_videos, need_texts, need_scale
        chunks = [(slice(0, kept.shape[0]), kept)]
        grad_videos, grad_texts, total = input_gradients(
            chunks, needs, videos, texts, alpha or 1.0, rest
        )
        if alpha:
            grad_scale = total / scale_in_dtype
        else:
            grad_scale = total * upstream / (2 * (stop - start))
        if grad_scale.dtype != scale.dtype:
            grad_scale = grad_scale.to(scale.dtype)
        return grad_videos, grad_texts, grad_scale


def _fake_forward(videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any) -> tuple[Tensor, ...]:
    row_lse = videos.new_empty((videos.shape[0],), dtype=compute_dtype(videos))
    return row_lse, row_lse.new_empty((texts.shape[0],)), torch.empty_like(row_lse)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return gradient_buffers(arguments[5:8], arguments[8:11])


def _fake_loss(keep: bool, videos: Tensor, texts: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    kept = (videos.shape[0], texts.shape[0]) if keep else (0,)
    loss = videos.new_empty((), dtype=compute_dtype(videos))
    return loss, loss.new_empty(kept)


def _fake_loss_gradient(*arguments: Any) -> tuple[Tensor, ...]:
    return gradient_buffers(arguments[2:5], arguments[5:8])


# Operators for tracing only: torch.compile would unroll the loop over chunks and make one graph per
# batch size, and which exponentials are taken depends on the logits' range.
_LIBRARY = torch.library.Library("svilm_infonce_reference", "DEF")
_INPUTS = "Tensor videos, Tensor texts, Tensor scale"
_CALL = (
    f"{_INPUTS}, Tensor? video_ids, Tensor? text_ids,"
    " SymInt diagonal_offset, str pair_mode, SymInt workspace_bytes"
)
_NEEDS = "bool need_videos, bool need_texts, bool need_scale"
_UPSTREAM = (
    "Tensor grad_row, Tensor grad_column, Tensor grad_positive, Tensor row_lse, Tensor column_lse"
)
_THREE = "(Tensor, Tensor, Tensor)"
for _name, _signature, _implementation, _fake in (
    ("forward", f"({_CALL}) -> {_THREE}", _forward, _fake_forward),
    ("backward", f"({_UPSTREAM}, {_NEEDS}, {_CALL}) -> {_THREE}", _backward, _fake_backward),
    ("loss", f"(bool keep, {_CALL}) -> (Tensor, Tensor)", _whole_loss, _fake_loss),
    (
        "loss_gradient",
        f"(Tensor upstream, Tensor kept, {_NEEDS}, {_INPUTS}, SymInt diagonal_offset) -> {_THREE}",
        _whole_gradient,
        _fake_loss_gradient,
    ),
):
    define(
        _LIBRARY,
        _name,
        _signature,
        _implementation,
        _fake,
        devices=("CompositeExplicitAutograd",),
    )
_ops = torch.ops.svilm_infonce_reference


class _InfoNCEPartials(torch.autograd.Function):
    """The three partials; backward computes the chunks again."""

    @staticmethod
    def forward(ctx: Any, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any) -> Any:
        run = _ops.forward if without_values(videos) else _forward
        found = run(videos, texts, scale, *packed)
        ctx.save_for_backward(videos, texts, scale, *found[:2], *packed[:2])
        ctx.packed = packed[2:]
        return found

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        videos, texts, scale, *lines, video_ids, text_ids = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        run: Callable[..., Any] = _ops.backward if without_values(videos) else _backward
        call = (videos, texts, scale, video_ids, text_ids, *ctx.packed)
        return *wanted(needs, run(*upstream, *lines, *needs, *call)), *(None,) * 5


class _InfoNCEWhole(torch.autograd.Function):
    """The loss of a block that `_whole_fits`; forward keeps dS, so backward has two products."""

    @staticmethod
    def forward(
        ctx: Any, keep: bool, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
    ) -> Any:
        run = _ops.loss if without_values(videos) else _whole_loss
        keep = keep and any(ctx.needs_input_grad[1:4])
        loss, kept = run(keep, videos, texts, scale, *packed)
        if keep:
            ctx.save_for_backward(videos, texts, scale, kept)
            ctx.diagonal_offset = packed[2]
        return loss

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> Any:
        videos, texts, scale, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:4]
        run: Callable[..., Any] = _ops.loss_gradient if without_values(videos) else _whole_gradient
        found = run(upstream, kept, *needs, videos, texts, scale, ctx.diagonal_offset)
        return None, *wanted(needs, found), *(None,) * 5


def partials(
    videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lse [m], column lse [n] and positives [m] of a block; see `api.infonce_partials`."""
    found: tuple[Tensor, Tensor, Tensor] = _InfoNCEPartials.apply(
        *_arguments(videos, texts, scale, options)
    )
    return found


def _arguments(
    videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Any, ...]:
    packed = options.packed(DEFAULT_WORKSPACE_BYTES)
    return *distinct(videos, texts, scale, *packed[:2]), *packed[2:]


def loss_of_partials(
    row_lse: Tensor, column_lse: Tensor, positives: Tensor, diagonal_offset: int
) -> Tensor:
    """1/(2P) x (row terms + column terms) of the P pairs whose diagonal lies in the block."""
    rows, columns = row_lse.shape[0], column_lse.shape[0]
    start, stop = diagonal_range(rows, columns, diagonal_offset)
    if stop - start < max(rows, columns):
        row_lse, positives = row_lse[start:stop], positives[start:stop]
        column_lse = column_lse[start + diagonal_offset : stop + diagonal_offset]
    return ((row_lse - positives) + (column_lse - positives)).sum() / (2 * (stop - start))


def loss(videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions) -> Tensor:
    """The loss of `api.infonce` without its checks; memory is that of one chunk of rows."""
    if _whole_fits(videos, texts, options):
        keep = torch.is_grad_enabled()
        if not keep and not without_values(videos):
            # An autograd function costs as much as several small operators.
            return _whole(False, videos, texts, scale, options)[0]
        whole: Tensor = _InfoNCEWhole.apply(keep, *_arguments(videos, texts, scale, options))
        return whole
    found = partials(videos, texts, scale, options)
    if options.shared_lists:
        return shared_loss(*found, ids=options.shared_lists)
    return loss_of_partials(*found, options.diagonal_offset)


def infonce(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    diagonal_offset: int = 0,
    pair_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    pair_mode: PairMode = "exclude",
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Tensor:
    """`loss` with the arguments of `api.infonce` except `backend`."""
    ids = pair_ids if isinstance(pair_ids, tuple) or pair_ids is None else (pair_ids, pair_ids)
    return loss(
        videos, texts, scale, InfonceOptions(diagonal_offset, ids, pair_mode, workspace_bytes)
    )
