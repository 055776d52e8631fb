"""Which pairs of a block are positives and which are left out of the softmax."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

PairMode = Literal["exclude", "share"]


def checked_pair_mode(pair_mode: str) -> PairMode:
    """`pair_mode` if it is known, else a ValueError."""
    if pair_mode not in ("exclude", "share"):
        raise ValueError(f"pair_mode is {pair_mode!r}; expected 'exclude' or 'share'")
    return cast(PairMode, pair_mode)


def diagonal_range(rows: int, columns: int, diagonal_offset: int) -> tuple[int, int]:
    """Rows [start, stop) of a block whose positive column, row + offset, lies inside it."""
    start = min(max(0, -diagonal_offset), rows)
    return start, max(start, min(rows, columns - diagonal_offset))


def dense_ids(video_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Replace 64-bit ids by int32 ranks that are equal exactly where the ids are.

    No host synchronisation: unlike `torch.unique`, no output size depends on the data.
    """
    ids = torch.cat((video_ids, text_ids))
    ordered, order = torch.sort(ids)
    rank_of_sorted = torch.zeros_like(ordered, dtype=torch.int32)
    rank_of_sorted[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    ranks = torch.empty_like(rank_of_sorted)
    ranks[order] = rank_of_sorted
    return ranks[: len(video_ids)], ranks[len(video_ids) :]


def share_weights(video_ids: Tensor, text_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[m]: 1 / number of texts with the video's id; 0 where there is none."""
    ordered = torch.sort(text_ids).values
    first = torch.searchsorted(ordered, video_ids)
    last = torch.searchsorted(ordered, video_ids, right=True)
    count = (last - first).to(dtype)
    return torch.where(count > 0, 1 / count, 0.0)
