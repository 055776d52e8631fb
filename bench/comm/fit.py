"""Fits seconds = alpha + beta x bytes to measured collectives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


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

    The error is relative because sizes span orders of magnitude and the small ones determine alpha.
    Raises ValueError for fewer than two different sizes.
    """
    points = np.asarray(list(samples), dtype=np.float64).reshape(-1, 2)
    if len(set(points[:, 0])) < 2:
        raise ValueError("a fit needs measurements of two sizes or more")
    size, seconds = points[:, 0], points[:, 1]
    columns = np.stack([np.ones_like(size), size], axis=1) / seconds[:, None]
    (alpha, beta), _ = nnls(columns, np.ones_like(seconds))
    return LinearFit(float(alpha), float(beta))
