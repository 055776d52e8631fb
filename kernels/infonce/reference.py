"""The oracle: symmetric InfoNCE in plain PyTorch, by chunks of rows, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..operators import define, distinct, first_derivative_only, gradient_buffers, wanted
from .options import InfonceOptions
from .pairs import PairMode, diagonal_range, share_weights, shared_loss

DEFAULT_WORKSPACE_BYTES = 1 << 26
# Logits, probabilities, gradient and mask of a chunk are live simultaneously.
_LIVE_MATRICES = 4


class _Block:
    """An [m, n] block of logits, computed one chunk of rows at a time."""

    def __init__(
        self, videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
    ) -> None:
        self.dtype = compute_dtype(videos)
        self.videos, self.texts = videos, texts.to(self.dtype)
        self.scale = scale.to(self.dtype)
        self.options = options
        self.columns = torch.arange(texts.shape[0], device=videos.device)
        self.weights = share_weights(*options.share, self.dtype) if options.share else None
        row_bytes = _LIVE_MATRICES * max(texts.shape[0], 1) * self.dtype.itemsize
        workspace_bytes = options.workspace_bytes or DEFAULT_WORKSPACE_BYTES
        self.chunk_rows = max(1, workspace_bytes // row_bytes)

    def chunks(self) -> list[slice]:
        rows = self.videos.shape[0]
        starts = range(0, rows, self.chunk_rows)
        return [slice(start, min(start + self.chunk_rows, rows)) for start in starts]

    def similarity(self, rows: slice) -> Tensor:
        """[c, n] dot products."""
        return self.videos[rows].to(self.dtype) @ self.texts.T

    def logits(self, similarity: Tensor, rows: slice) -> Tensor:
        """[c, n] scaled dot products, -inf where a pair is excluded."""
        # s_ij = alpha a_ij
        logits = self.scale * similarity
        if self.options.exclude is None:
            return logits
        videos, texts = self.options.exclude
        same = videos[rows, None] == texts
        return logits.masked_fill_(same & ~self._diagonal(rows), -torch.inf)

    def target(self, rows: slice) -> Tensor:
        """[c, n] weights of the positives: a row sums to 1, or to 0 if it has none."""
        if self.weights is None or self.options.share is None:
            return self._diagonal(rows).to(self.dtype)
        videos, texts = self.options.share
        return (videos[rows, None] == texts) * self.weights[rows, None]

    def _diagonal(self, rows: slice) -> Tensor:
        positive = torch.arange(rows.start, rows.stop, device=self.columns.device)
        positive += self.options.diagonal_offset
        return positive[:, None] == self.columns


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    # If all pairs of a line are excluded, lse = -inf and its probabilities are 0, not
    # exp(-inf + inf).
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0))


def _forward(
    videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(videos.device.type, enabled=False):
        block = _Block(videos, texts, scale, InfonceOptions.unpacked(*packed))
        row_lse = torch.empty(videos.shape[0], dtype=block.dtype, device=videos.device)
        column_lse = row_lse.new_full((texts.shape[0],), -torch.inf)
        positives = torch.empty_like(row_lse)
        for rows in block.chunks():
            logits = block.logits(block.similarity(rows), rows)
            target = block.target(rows)
            row_lse[rows] = torch.logsumexp(logits, 1)
            column_lse = torch.logaddexp(column_lse, torch.logsumexp(logits, 0))
            positives[rows] = logits.mul_(target).masked_fill_(target == 0, 0.0).sum(1)
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
    """Gradients of videos, texts and scale; empty where not needed."""
    with torch.autocast(videos.device.type, enabled=False):
        block = _Block(videos, texts, scale, InfonceOptions.unpacked(*packed))
        grad_videos = torch.empty_like(videos) if need_videos else videos.new_empty((0,))
        grad_texts = torch.zeros_like(block.texts) if need_texts else block.texts.new_empty((0,))
        grad_scale = torch.zeros_like(block.scale) if need_scale else block.scale.new_empty((0,))
        for rows in block.chunks():
            similarity = block.similarity(rows)
            logits = block.logits(similarity, rows)
            # dS_ij = g^r_i exp(s_ij - r_i) + g^c_j exp(s_ij - c_j) + g^p_i Y_ij
            grad_logits = _softmax(logits, row_lse[rows, None]) * grad_row[rows, None]
            grad_logits += _softmax(logits, column_lse) * grad_column
            grad_logits += block.target(rows) * grad_positive[rows, None]
            if need_scale:
                # dalpha = sum_ij dS_ij a_ij
                grad_scale += (grad_logits * similarity).sum()
            # dV = alpha dS T, dT = alpha dS^T V
            grad_logits *= block.scale
            if need_videos:
                grad_videos[rows] = (grad_logits @ block.texts).to(videos.dtype)
            if need_texts:
                grad_texts += grad_logits.T @ videos[rows].to(block.dtype)
    return grad_videos, grad_texts.to(texts.dtype), grad_scale.to(scale.dtype)


def _fake_forward(videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any) -> Any:
    row_lse = videos.new_empty((videos.shape[0],), dtype=compute_dtype(videos))
    return row_lse, row_lse.new_empty((texts.shape[0],)), torch.empty_like(row_lse)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    needs, inputs = arguments[5:8], arguments[8:11]
    return gradient_buffers(needs, inputs)


# Operators for torch.compile only: it would unroll the loop over chunks and make one graph per
# batch size.
_LIBRARY = torch.library.Library("svilm_infonce_reference", "DEF")
_CALL = (
    "Tensor videos, Tensor texts, Tensor scale, Tensor? video_ids, Tensor? text_ids,"
    " SymInt diagonal_offset, str pair_mode, SymInt workspace_bytes"
)
_UPSTREAM = (
    "Tensor grad_row, Tensor grad_column, Tensor grad_positive, Tensor row_lse,"
    " Tensor column_lse, bool need_videos, bool need_texts, bool need_scale"
)
for _name, _signature, _implementation, _fake in (
    ("forward", f"({_CALL})", _forward, _fake_forward),
    ("backward", f"({_UPSTREAM}, {_CALL})", _backward, _fake_backward),
):
    define(
        _LIBRARY,
        _name,
        f"{_signature} -> (Tensor, Tensor, Tensor)",
        _implementation,
        _fake,
        devices=("CompositeExplicitAutograd",),
    )
_ops = torch.ops.svilm_infonce_reference


class _InfoNCEPartials(torch.autograd.Function):
    """Recomputes every chunk in backward, so that nothing of size m x n is saved."""

    @staticmethod
    def forward(
        ctx: Any, videos: Tensor, texts: Tensor, scale: Tensor, *packed: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = _ops.forward if torch.compiler.is_compiling() else _forward
        row_lse, column_lse, positives = run(videos, texts, scale, *packed)
        ctx.save_for_backward(videos, texts, scale, row_lse, column_lse, *packed[:2])
        ctx.packed = packed[2:]
        return row_lse, column_lse, positives

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        videos, texts, scale, row_lse, column_lse, video_ids, text_ids = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        run: Callable[..., Any] = _ops.backward if torch.compiler.is_compiling() else _backward
        call = (videos, texts, scale, video_ids, text_ids, *ctx.packed)
        found = run(*upstream, row_lse, column_lse, *needs, *call)
        return *wanted(needs, found), *(None,) * 5


def partials(
    videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lse [m], column lse [n] and positives [m] of a block; see `api.infonce_partials`."""
    packed = options.packed(DEFAULT_WORKSPACE_BYTES)
    return _InfoNCEPartials.apply(*distinct(videos, texts, scale, *packed[:2]), *packed[2:])


def loss_of_partials(
    row_lse: Tensor, column_lse: Tensor, positives: Tensor, diagonal_offset: int
) -> Tensor:
    """1/(2P) x (row terms + column terms) of the P pairs whose diagonal lies in the block."""
    rows, columns = row_lse.shape[0], column_lse.shape[0]
    start, stop = diagonal_range(rows, columns, diagonal_offset)
    row_terms = row_lse[start:stop] - positives[start:stop]
    column_terms = column_lse[start + diagonal_offset : stop + diagonal_offset]
    return (row_terms + (column_terms - positives[start:stop])).sum() / (2 * (stop - start))


def loss(videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions) -> Tensor:
    """The loss of `api.infonce` without its checks; memory is that of one chunk of rows."""
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
