"""The oracle: symmetric InfoNCE in plain PyTorch, by chunks of rows, on any device."""

from __future__ import annotations

import math
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
    without_values,
)
from .options import InfonceOptions
from .pairs import PairMode, diagonal_range, share_weights, shared_loss

DEFAULT_WORKSPACE_BYTES = 1 << 26
# Logits, probabilities, gradient and mask of a chunk are live simultaneously.
_LIVE_MATRICES = 4
# Exponentials relative to the largest logit serve rows and columns while no log-sum is this far
# below it. The error of a log-sum grows with it: at 40 by 40 x 2^-24, that of a logit of 40.
_WIDEST = 40.0
_SMALLEST = math.exp(-_WIDEST)


class _Block:
    """An [m, n] block of logits, computed one chunk of rows at a time."""

    def __init__(
        self, videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
    ) -> None:
        self.dtype = compute_dtype(videos)
        self.videos, self.texts = videos, texts.to(self.dtype)
        self.scale = scale.to(self.dtype)
        # Products take alpha as a number where reading it does not stop a GPU; 0 stays out of them,
        # because its gradient is the sum that they give without it.
        self.alpha = (float(self.scale) if scale.device.type == "cpu" else 0.0) or 1.0
        self.rest = None if self.alpha != 1.0 else self.scale
        self.options = options
        self.weights = share_weights(*options.share, self.dtype) if options.share else None
        row_bytes = _LIVE_MATRICES * max(texts.shape[0], 1) * self.dtype.itemsize
        workspace_bytes = options.workspace_bytes or DEFAULT_WORKSPACE_BYTES
        self.chunk_rows = max(1, workspace_bytes // row_bytes)

    def chunks(self) -> list[slice]:
        rows = self.videos.shape[0]
        starts = range(0, rows, self.chunk_rows)
        return [slice(start, min(start + self.chunk_rows, rows)) for start in starts]

    def logits(self, rows: slice) -> Tensor:
        """[c, n] scaled dot products, -inf where a pair is excluded."""
        # s_ij = alpha a_ij
        videos = self.videos[rows].to(self.dtype)
        logits = videos.new_empty((videos.shape[0], self.texts.shape[0]))
        _add_product(logits, videos, self.texts.T, self.alpha, first=True)
        if self.rest is not None:
            logits *= self.rest
        if self.options.exclude is None:
            return logits
        video_ids, text_ids = self.options.exclude
        same = video_ids[rows, None] == text_ids
        self._diagonal(same, rows)[0].fill_(False)
        return logits.masked_fill_(same, -torch.inf)

    def positives(self, logits: Tensor, rows: slice) -> Tensor:
        """[c] sums of the logits weighted by the targets; 0 for a row without a positive."""
        if self.weights is None:
            found = logits.new_zeros(logits.shape[0])
            place, own = self._diagonal(logits, rows)
            found[slice(own.start - rows.start, own.stop - rows.start)] = place
            return found
        target = self._shared(rows)
        return (logits * target).masked_fill_(target == 0, 0.0).sum(1)

    def add_positives(self, grad_logits: Tensor, rows: slice, gradient: Tensor) -> None:
        """Add g^p_i Y_ij [c, n] in place; gradient: [m], of the positives."""
        if self.weights is None:
            place, own = self._diagonal(grad_logits, rows)
            place.add_(gradient[own])
        else:
            grad_logits += self._shared(rows) * gradient[rows, None]

    def _shared(self, rows: slice) -> Tensor:
        """[c, n] weights of the positives: a row sums to 1, or to 0 if it has none."""
        assert self.options.share is not None
        assert self.weights is not None
        videos, texts = self.options.share
        return (videos[rows, None] == texts) * self.weights[rows, None]

    def _diagonal(self, matrix: Tensor, rows: slice) -> tuple[Tensor, slice]:
        """The positives' entries of a chunk [c, n], and their rows among all."""
        offset = self.options.diagonal_offset
        start, stop = diagonal_range(self.videos.shape[0], self.texts.shape[0], offset)
        start, stop = max(start, rows.start), min(stop, rows.stop)
        return matrix.diagonal(offset + rows.start), slice(start, max(start, stop))


def _log_sums(
    block: _Block, rows: slice, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-sums of rows and columns of a chunk, and its exp(logits - reference) and the reference.

    Where a sum is too small for that, or not finite, or on a GPU, which would have to wait for the
    sums, the last two are the logits and None. Overwrites `logits`.
    """
    if logits.device.type == "cpu":
        reference = logits.amax()
        powers = logits.sub_(reference).exp_()
        sums = powers.sum(1), powers.sum(0)
        if min(float(each.min()) for each in sums) >= _SMALLEST:
            row_lse, column_lse = (each.log_().add_(reference) for each in sums)
            return row_lse, column_lse, powers, reference
        logits = block.logits(rows)
    return torch.logsumexp(logits, 1), torch.logsumexp(logits, 0), logits, None


def _exponentials(logits: Tensor, *lse: Tensor) -> tuple[Tensor, Tensor | None]:
    """exp(logits - reference) and the reference, as `_log_sums` returns them, from the log-sums."""
    if logits.device.type == "cpu":
        reference = logits.amax()
        if float(reference) - min(float(each.min()) for each in lse) <= _WIDEST:
            return logits.sub_(reference).exp_(), reference
    return logits, None


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    # If all pairs of a line are excluded, lse = -inf and its probabilities are 0, not
    # exp(-inf + inf).
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0))


def _keeps(keep: bool, videos: Tensor, texts: Tensor, *packed: Any) -> bool:
    """Whether forward keeps a matrix [m, n], so that backward does not compute the logits again.

    It does on a CPU, without pair ids, where the matrix takes at most half of the workspace.
    """
    size = videos.shape[0] * texts.shape[0] * compute_dtype(videos).itemsize
    alone = packed[0] is None and videos.device.type == "cpu"
    return keep and alone and 0 < 2 * size <= packed[-1]


def _forward(
    keep: bool, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row lse, column lse, positives, and what `_backward` takes: `kept` and `mark`.

    kept: [m, n] as `_log_sums` returns it, or empty. mark: the reference, NaN for None.
    """
    with torch.autocast(videos.device.type, enabled=False):
        block = _Block(videos, texts, scale, InfonceOptions.unpacked(*packed))
        if _keeps(keep, videos, texts, *packed):
            return _forward_kept(block)
        row_lse = torch.empty(videos.shape[0], dtype=block.dtype, device=videos.device)
        column_lse = row_lse.new_full((texts.shape[0],), -torch.inf)
        positives = torch.empty_like(row_lse)
        for rows in block.chunks():
            logits = block.logits(rows)
            positives[rows] = block.positives(logits, rows)
            row_lse[rows], columns = _log_sums(block, rows, logits)[:2]
            column_lse = torch.logaddexp(column_lse, columns)
        return row_lse, column_lse, positives, row_lse.new_empty((0,)), row_lse.new_empty(())


def _forward_kept(block: _Block) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    every = slice(0, block.videos.shape[0])
    logits = block.logits(every)
    positives = block.positives(logits, every)
    row_lse, column_lse, kept, reference = _log_sums(block, every, logits)
    mark = kept.new_full((), torch.nan) if reference is None else reference
    return row_lse, column_lse, positives, kept, mark


def _backward(
    grad_row: Tensor,
    grad_column: Tensor,
    grad_positive: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    kept: Tensor,
    mark: Tensor,
    need_videos: bool,
    need_texts: bool,
    need_scale: bool,
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of videos, texts and scale; empty where not needed."""
    with torch.autocast(videos.device.type, enabled=False):
        block = _Block(videos, texts, scale, InfonceOptions.unpacked(*packed))
        grad_videos = torch.empty_like(videos) if need_videos else videos.new_empty((0,))
        grad_texts = torch.empty_like(block.texts) if need_texts else block.texts.new_empty((0,))
        in_place = need_videos and videos.dtype == block.dtype
        alpha, rest = block.alpha, block.rest
        grad_scale = torch.zeros_like(block.scale) if need_scale else block.scale.new_empty((0,))
        for rows in block.chunks():
            if kept.dim() == 2:
                matrix, reference = kept[rows], None if mark.isnan() else mark
            else:
                matrix, reference = _exponentials(block.logits(rows), row_lse[rows], column_lse)
            # dS_ij = g^r_i exp(s_ij - r_i) + g^c_j exp(s_ij - c_j) + g^p_i Y_ij
            if reference is None:
                grad_logits = _softmax(matrix, row_lse[rows, None]).mul_(grad_row[rows, None])
                grad_logits += _softmax(matrix, column_lse).mul_(grad_column)
            else:
                of_row = grad_row[rows] * torch.exp(reference - row_lse[rows])
                of_column = grad_column * torch.exp(reference - column_lse)
                grad_logits = (of_row[:, None] + of_column).mul_(matrix)
            block.add_positives(grad_logits, rows, grad_positive)
            # dV = alpha dS T, dT = alpha dS^T V, dalpha = sum_ij dS_ij a_ij = sum_i <v_i, dS_i T>
            rows_of_videos = videos[rows].to(block.dtype)
            if need_videos or need_scale:
                products = grad_videos[rows] if in_place else torch.empty_like(rows_of_videos)
                _add_product(products, grad_logits, block.texts, alpha, first=True)
                if need_scale:
                    grad_scale += (products * rows_of_videos).sum()
                if rest is not None:
                    products *= rest
                if need_videos and not in_place:
                    grad_videos[rows] = products
            if need_texts:
                first = rows.start == 0
                _add_product(grad_texts, grad_logits.T, rows_of_videos, alpha, first=first)
        if need_texts and rest is not None:
            grad_texts *= rest
        grad_scale /= alpha
    return grad_videos, grad_texts.to(texts.dtype), grad_scale.to(scale.dtype)


def _add_product(out: Tensor, left: Tensor, right: Tensor, alpha: float, *, first: bool) -> None:
    torch.addmm(out, left, right, beta=0 if first else 1, alpha=alpha, out=out)


def _fake_forward(
    keep: bool, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
) -> tuple[Tensor, ...]:
    rows, columns = videos.shape[0], texts.shape[0]
    row_lse = videos.new_empty((rows,), dtype=compute_dtype(videos))
    kept = (rows, columns) if _keeps(keep, videos, texts, *packed) else (0,)
    sums = row_lse, row_lse.new_empty((columns,)), torch.empty_like(row_lse)
    return *sums, row_lse.new_empty(kept), row_lse.new_empty(())


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    needs, inputs = arguments[7:10], arguments[10:13]
    return gradient_buffers(needs, inputs)


# Operators for tracing only: torch.compile would unroll the loop over chunks and make one graph per
# batch size, and what forward keeps depends on the logits' range.
_LIBRARY = torch.library.Library("svilm_infonce_reference", "DEF")
_CALL = (
    "Tensor videos, Tensor texts, Tensor scale, Tensor? video_ids, Tensor? text_ids,"
    " SymInt diagonal_offset, str pair_mode, SymInt workspace_bytes"
)
_UPSTREAM = (
    "Tensor grad_row, Tensor grad_column, Tensor grad_positive, Tensor row_lse,"
    " Tensor column_lse, Tensor kept, Tensor mark, bool need_videos, bool need_texts,"
    " bool need_scale"
)
_THREE = "Tensor, Tensor, Tensor"
for _name, _signature, _implementation, _fake in (
    ("forward", f"(bool keep, {_CALL}) -> ({_THREE}, Tensor, Tensor)", _forward, _fake_forward),
    ("backward", f"({_UPSTREAM}, {_CALL}) -> ({_THREE})", _backward, _fake_backward),
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
    """Computes the chunks again in backward, or keeps one matrix that fits the workspace.

    Returns the three partials, or with `as_loss` the loss: for a small batch, a graph of its terms
    would take as long as the products.
    """

    @staticmethod
    def forward(
        ctx: Any, as_loss: bool, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
    ) -> Any:
        run = _ops.forward if without_values(videos) else _forward
        keep = any(ctx.needs_input_grad[1:4])
        row_lse, column_lse, positives, *kept = run(keep, videos, texts, scale, *packed)
        ctx.save_for_backward(videos, texts, scale, row_lse, column_lse, *kept, *packed[:2])
        ctx.packed, ctx.as_loss = packed[2:], as_loss
        if as_loss:
            return loss_of_partials(row_lse, column_lse, positives, ctx.packed[0])
        return row_lse, column_lse, positives

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        videos, texts, scale, *lines, video_ids, text_ids = ctx.saved_tensors
        if ctx.as_loss:
            sizes = videos.shape[0], texts.shape[0], ctx.packed[0]
            upstream = _upstream_of_loss(upstream[0], *sizes)
        needs = ctx.needs_input_grad[1:4]
        run: Callable[..., Any] = _ops.backward if without_values(videos) else _backward
        call = (videos, texts, scale, video_ids, text_ids, *ctx.packed)
        found = run(*upstream, *lines, *needs, *call)
        return None, *wanted(needs, found), *(None,) * 5


def _upstream_of_loss(
    upstream: Tensor, rows: int, columns: int, diagonal_offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `loss_of_partials`; 0 on lines without a pair."""
    start, stop = diagonal_range(rows, columns, diagonal_offset)
    share = upstream / (2 * (stop - start))

    def of_lines(number: int, first: int, value: Tensor) -> Tensor:
        if stop - start == number:
            return value.expand(number)
        found = value.new_zeros(number)
        found[first : first + stop - start] = value
        return found

    of_columns = of_lines(columns, start + diagonal_offset, share)
    return of_lines(rows, start, share), of_columns, of_lines(rows, start, -2 * share)


def partials(
    videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lse [m], column lse [n] and positives [m] of a block; see `api.infonce_partials`."""
    found: tuple[Tensor, Tensor, Tensor] = _applied(False, videos, texts, scale, options)
    return found


def _applied(
    as_loss: bool, videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> Any:
    packed = options.packed(DEFAULT_WORKSPACE_BYTES)
    tensors = distinct(videos, texts, scale, *packed[:2])
    return _InfoNCEPartials.apply(as_loss, *tensors, *packed[2:])


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
    if options.shared_lists:
        return shared_loss(*partials(videos, texts, scale, options), ids=options.shared_lists)
    found: Tensor = _applied(True, videos, texts, scale, options)
    return found


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
