"""Ranks the windows of an index by their similarity with a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svilm_fast.search.index import VideoIndex

TILE_ROWS = 65_536
# Two windows of one video that share more of their time than this are one moment.
LARGEST_OVERLAP = 0.3


@dataclass(frozen=True)
class Moment:
    """A part of a video: file, name in the folder, start and end in seconds, cosine similarity."""

    path: Path
    name: str
    start: float
    end: float
    score: float
    seconds: float  # of the whole video


def best_moments(index: VideoIndex, text: Tensor, top: int) -> list[Moment]:
    """Return the `top` windows most similar to a text [D], best first.

    Of windows of one video that overlap, the best alone is returned. Windows with equal scores keep
    the order of names and times.
    """
    table, places = index.table()
    if not places:
        return []
    chosen: list[Moment] = []
    for row, score in _ranked(table, text):
        name, (start, end) = places[row]
        taken = (each for each in chosen if each.name == name)
        if any(overlap((start, end), (each.start, each.end)) > LARGEST_OVERLAP for each in taken):
            continue
        path, seconds = index.folder / name, index.videos[name].seconds
        chosen.append(Moment(path, name, start, end, score, seconds))
        if len(chosen) == top:
            break
    return chosen


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the shared time of two intervals as a share of their union (temporal IoU)."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])
    return 1.0 if union <= 0 else max(0.0, shared) / union


def _ranked(table: Tensor, text: Tensor) -> list[tuple[int, float]]:
    scores = torch.cat([tile @ text for tile in table.split(TILE_ROWS)])
    order = torch.sort(scores, descending=True, stable=True).indices
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))
