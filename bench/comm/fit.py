"""Fits seconds = alpha + beta x bytes to measured collectives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearFit:
    """alpha: seconds of a call without bytes. beta: seconds per byte of the whole tensor."""

    alpha: float
    beta: float

    def seconds(self, size: float) -> float:
        """Time of one call."""
        return self.alpha + self.beta * size


def fit_line(samples: Iterable[tuple[float, float]]) -> LinearFit:
    """Least squares of the relative error over (bytes, seconds); neither value is negative.

    Relative, because sizes span orders of magnitude and the small ones decide alpha. Raises
    ValueError for fewer than two different sizes.
    """
    points = np.asarray(list(samples), dtype=np.float64).reshape(-1, 2)
    if len(set(points[:, 0])) < 2:
        raise ValueError("a fit needs measurements of two sizes or more")
    size, seconds = points[:, 0], points[:, 1]
    columns = np.stack([np.ones_like(size), size], axis=1) / seconds[:, None]
    (alpha, beta), *_ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)
    if alpha < 0:
        weights = size / seconds
        return LinearFit(0.0, float(weights.sum() / (weights**2).sum()))
    if beta < 0:
        return LinearFit(float((1 / seconds).sum() / (1 / seconds**2).sum()), 0.0)
    return LinearFit(float(alpha), float(beta))
