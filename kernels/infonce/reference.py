"""The oracle: symmetric InfoNCE over row chunks in plain PyTorch, any dtype, any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators import first_derivative_only
from .pairs import PairMode, diagonal_range, share_weights

# Logits, probabilities, gradient and mask of a chunk are live at the same time.
_LIVE_MATRICES = 4


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Block:
    """A [m, n] block of logits, made one chunk of rows at a time."""

    def __init__(
        self,
        videos: Tensor,
        texts: Tensor,
        scale: Tensor,
        video_ids: Tensor | None,
        text_ids: Tensor | None,
        diagonal_offset: int,
        pair_mode: PairMode,
        workspace_bytes: int,
    ) -> None:
        self.dtype = compute_dtype(videos.dtype)
        self.videos, self.texts = videos, texts.to(self.dtype)
        self.scale = scale.to(self.dtype)
        self.video_ids, self.text_ids = video_ids, text_ids
        self.offset, self.mode = diagonal_offset, pair_mode
        self.columns = torch.arange(texts.shape[0], device=videos.device)
        self.weights: Tensor | None = None
        if video_ids is not None and text_ids is not None and pair_mode == "share":
            self.weights = share_weights(video_ids, text_ids, self.dtype)
        row_bytes = _LIVE_MATRICES * max(texts.shape[0], 1) * self.dtype.itemsize
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
        logits = self.scale * similarity
        if self.video_ids is None or self.text_ids is None or self.mode == "share":
            return logits
        same = self.video_ids[rows, None] == self.text_ids
        return logits.masked_fill_(same & ~self._diagonal(rows), -torch.inf)

    def target(self, rows: slice) -> Tensor:
        """[c, n] weights of the positives: a row sums to 1, or to 0 if it has none."""
        if self.weights is None or self.video_ids is None or self.text_ids is None:
            return self._diagonal(rows).to(self.dtype)
        same = self.video_ids[rows, None] == self.text_ids
        return same * self.weights[rows, None]

    def _diagonal(self, rows: slice) -> Tensor:
        positive = torch.arange(rows.start, rows.stop, device=self.columns.device) + self.offset
        return positive[:, None] == self.columns


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    # A line without any pair has lse = -inf; its probabilities are 0, not exp(-inf + inf).
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0))


class _Partials(torch.autograd.Function):
    """Recomputes every chunk in backward, so that nothing of size m x n is ever saved."""

    @staticmethod
    def forward(
        ctx: Any, videos: Tensor, texts: Tensor, scale: Tensor, *layout: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(videos.device.type, enabled=False):
            block = _Block(videos, texts, scale, *layout)
            row_lse = torch.empty(videos.shape[0], dtype=block.dtype, device=videos.device)
            column_lse = row_lse.new_full((texts.shape[0],), -torch.inf)
            positives = torch.empty_like(row_lse)
            for rows in block.chunks():
                logits = block.logits(block.similarity(rows), rows)
                target = block.target(rows)
                row_lse[rows] = torch.logsumexp(logits, 1)
                column_lse = torch.logaddexp(column_lse, torch.logsumexp(logits, 0))
                positives[rows] = logits.mul_(target).masked_fill_(target == 0, 0.0).sum(1)
        ctx.save_for_backward(videos, texts, scale, row_lse, column_lse, *layout[:2])
        ctx.layout = layout[2:]
        return row_lse, column_lse, positives

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor) -> Any:
        videos, texts, scale, row_lse, column_lse, video_ids, text_ids = ctx.saved_tensors
        need_videos, need_texts, need_scale = ctx.needs_input_grad[:3]
        with torch.autocast(videos.device.type, enabled=False):
            block = _Block(videos, texts, scale, video_ids, text_ids, *ctx.layout)
            grad_videos = torch.empty_like(videos) if need_videos else None
            grad_texts = torch.zeros_like(block.texts) if need_texts else None
            grad_scale = torch.zeros_like(block.scale) if need_scale else None
            for rows in block.chunks():
                similarity = block.similarity(rows)
                logits = block.logits(similarity, rows)
                grad_logits = _softmax(logits, row_lse[rows, None]) * grad_row[rows, None]
                grad_logits += _softmax(logits, column_lse) * grad_column
                grad_logits += block.target(rows) * grad_positive[rows, None]
                if grad_scale is not None:
                    grad_scale += (grad_logits * similarity).sum()
                grad_logits *= block.scale
                if grad_videos is not None:
                    grad_videos[rows] = (grad_logits @ block.texts).to(videos.dtype)
                if grad_texts is not None:
                    grad_texts += grad_logits.T @ videos[rows].to(block.dtype)
        return (
            grad_videos,
            None if grad_texts is None else grad_texts.to(texts.dtype),
            None if grad_scale is None else grad_scale.to(scale.dtype),
            *(None for _ in range(5)),
        )


def partials(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    diagonal_offset: int = 0,
    video_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    pair_mode: PairMode = "exclude",
    workspace_bytes: int = 1 << 26,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lse [m], column lse [n] and positives [m] of a block; see `api.infonce_partials`."""
    return _Partials.apply(
        videos, texts, scale, video_ids, text_ids, diagonal_offset, pair_mode, workspace_bytes
    )


def loss_of_partials(
    row_lse: Tensor, column_lse: Tensor, positives: Tensor, diagonal_offset: int
) -> Tensor:
    """1/(2P) x (row terms + column terms) of the P pairs whose diagonal lies in the block."""
    rows, columns = row_lse.shape[0], column_lse.shape[0]
    start, stop = diagonal_range(rows, columns, diagonal_offset)
    row_terms = row_lse[start:stop] - positives[start:stop]
    column_terms = column_lse[start + diagonal_offset : stop + diagonal_offset]
    return (row_terms + (column_terms - positives[start:stop])).sum() / (2 * (stop - start))


def infonce(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    diagonal_offset: int = 0,
    pair_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    pair_mode: PairMode = "exclude",
    workspace_bytes: int = 1 << 26,
) -> Tensor:
    """The loss of `api.infonce` without its checks; memory is that of one chunk of rows."""
    video_ids, text_ids = pair_ids if isinstance(pair_ids, tuple) else (pair_ids, pair_ids)
    found = partials(
        videos,
        texts,
        scale,
        diagonal_offset=diagonal_offset,
        video_ids=video_ids,
        text_ids=text_ids,
        pair_mode=pair_mode,
        workspace_bytes=workspace_bytes,
    )
    return loss_of_partials(*found, diagonal_offset)
