"""Positives of a block, and pairs with equal ids."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

PairMode = Literal["exclude", "share"]


def checked_pair_mode(pair_mode: str) -> PairMode:
    """`pair_mode` if it is valid, else a ValueError."""
    if pair_mode not in ("exclude", "share"):
        raise ValueError(f"pair_mode is {pair_mode!r}; expected 'exclude' or 'share'")
    return cast(PairMode, pair_mode)


def diagonal_range(rows: int, columns: int, diagonal_offset: int) -> tuple[int, int]:
    """Rows [start, stop) of a block whose positive column, row + offset, lies inside it."""
    start = min(max(0, -diagonal_offset), rows)
    return start, max(start, min(rows, columns - diagonal_offset))


def dense_ids(video_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Replace 64-bit ids by int32 ranks that are equal if and only if the ids are equal.

    Does not synchronise with the host: unlike `torch.unique`, no output size depends on the data.
    """
    ids = torch.cat((video_ids, text_ids))
    ordered, order = torch.sort(ids)
    rank_of_sorted = torch.zeros_like(ordered, dtype=torch.int32)
    rank_of_sorted[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    ranks = torch.empty_like(rank_of_sorted)
    ranks[order] = rank_of_sorted
    return ranks[: len(video_ids)], ranks[len(video_ids) :]


def partners(own_ids: Tensor, other_ids: Tensor) -> Tensor:
    """[m] int64: for each of `own_ids` [m], the number of `other_ids` [n] equal to it."""
    ordered = torch.sort(other_ids).values
    first = torch.searchsorted(ordered, own_ids)
    return torch.searchsorted(ordered, own_ids, right=True) - first


def share_weights(video_ids: Tensor, text_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[m]: 1 / number of texts with the video's id; 0 where there is none."""
    count = partners(video_ids, text_ids).to(dtype)
    return torch.where(count > 0, 1 / count, 0.0)


def shared_loss(
    row_lse: Tensor, column_lse: Tensor, positives: Tensor, *, ids: tuple[Tensor, Tensor]
) -> Tensor:
    """The loss of a square block in `share` mode, from its log-sums and the rows' positives.

    A row's target is spread over the texts with its id, a column's over the videos with its id. A
    row or column without an equal id adds 0. A constant subtracted from all log-sums and positives
    does not change the loss.
    """
    video_ids, text_ids = ids
    texts_of_video = partners(video_ids, text_ids)
    videos_of_video = partners(video_ids, video_ids)
    # A class of t texts and v videos: its columns' positives sum to t/v times its rows'.
    weights = 1 + texts_of_video.to(row_lse.dtype) / videos_of_video
    rows = (row_lse - weights * positives).masked_fill(texts_of_video == 0, 0.0)
    columns = column_lse.masked_fill(partners(text_ids, video_ids) == 0, 0.0)
    return (rows.sum() + columns.sum()) / (2 * rows.shape[0])
