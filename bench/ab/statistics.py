"""The estimate of a comparison, its interval, and the p-value that decides.

Every process has its own timing offset, so the restarts are the independent observations. Within a
restart the renewals (or, without renewals, the pairs) are averaged by their midmean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

Restarts = Sequence[Sequence[float]]
RESAMPLES = 4000
TRIMMED = 4  # a quarter of the values at each end


def midmean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis."""
    count = values.shape[-1]
    cut = count // TRIMMED
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)


def bootstrap(restarts: Restarts, count: int, seed: int = 0) -> np.ndarray:
    """Means of `count` resamples: restarts with replacement, then the values of each."""
    draw = np.random.default_rng(seed)
    resampled = np.empty((len(restarts), count))
    # Every resample draws len(restarts) restarts, then values within each of those.
    chosen = draw.integers(len(restarts), size=(len(restarts), count))
    for number, values in enumerate(map(np.asarray, restarts)):
        wanted = chosen == number
        inner = draw.integers(len(values), size=(int(wanted.sum()), len(values)))
        resampled[wanted] = midmean(values[inner])
    return resampled.mean(axis=0)


@dataclass(frozen=True)
class Estimate:
    """A mean log ratio with the spread between restarts; `values` are the restarts' midmeans."""

    restarts: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]
    mean: float
    error: float

    @property
    def degrees(self) -> int:
        """Degrees of freedom."""
        return len(self.values) - 1

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided interval: Student's over restarts, widened to the bootstrap's where wider."""
        tail = (1 - confidence) / 2
        half = -float(stdtrit(self.degrees, tail)) * self.error
        count = max(RESAMPLES, math.ceil(20 / tail))
        low, high = np.quantile(bootstrap(self.restarts, count), [tail, 1 - tail])
        return min(self.mean - half, float(low)), max(self.mean + half, float(high))

    def p_above(self, bound: float, least: float = 0.0) -> float:
        """One-sided p-value of "the log ratio is at most `bound`".

        The larger of Student's and the bootstrap's p-value. `least` is the smallest value that the
        caller distinguishes: the bootstrap takes enough resamples for it.
        """
        return self._p(self.mean - bound, bound, least, 1)

    def p_below(self, bound: float, least: float = 0.0) -> float:
        """One-sided p-value of "the log ratio is at least `bound`"."""
        return self._p(bound - self.mean, bound, least, -1)

    def _p(self, distance: float, bound: float, least: float, sign: int) -> float:
        if self.error == 0:
            student = 0.0 if distance > 0 else 1.0
        else:
            student = float(stdtr(self.degrees, -distance / self.error))
        count = max(RESAMPLES, math.ceil(4 / least) if least else 0)
        outside = sign * (bootstrap(self.restarts, count) - bound) <= 0
        return max(student, (1 + int(outside.sum())) / (1 + count))


def estimate(restarts: Restarts) -> Estimate:
    """Estimate from log ratios, grouped by restart.

    Raises:
        ValueError: fewer than two restarts, or one without values.
    """
    if len(restarts) < 2 or not all(len(values) for values in restarts):
        raise ValueError("an interval needs at least two restarts with values in each")
    values = tuple(float(midmean(np.asarray(one, dtype=float))) for one in restarts)
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    kept = tuple(tuple(map(float, one)) for one in restarts)
    return Estimate(kept, values, float(np.mean(values)), error)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Scand. J. Statist. 6, 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
