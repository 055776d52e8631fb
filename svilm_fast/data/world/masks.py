"""Masks as run lengths, and their boxes."""

from __future__ import annotations

import numpy as np


def encode_mask(mask: np.ndarray) -> list[int]:
    """Run lengths of a bool mask [H, W] in row-major order, alternating from False, without the
    last run of False; an empty mask gives []."""
    flat = mask.reshape(-1).astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    return np.diff(changes, prepend=0).tolist()


def decode_mask(runs: list[int], height: int, width: int) -> np.ndarray:
    """The bool mask [height, width] of `encode_mask`; ValueError for runs that do not fit."""
    if sum(runs) > height * width or len(runs) % 2 or any(run < 0 for run in runs):
        raise ValueError(f"runs do not describe a mask of {height} x {width} pixels")
    flat = np.zeros(height * width, bool)
    edges = np.cumsum(runs)
    for start, end in zip(edges[::2], edges[1::2]):
        flat[start:end] = True
    return flat.reshape(height, width)


def mask_box(mask: np.ndarray) -> list[int] | None:
    """The tight box [x0, y0, x1, y1] of a bool mask [H, W], x1 and y1 exclusive; None if empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
