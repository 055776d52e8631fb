"""Interval of the difference of two rows, by a bootstrap over seeds and over queries.

Both rows ran with the same seeds and answered the same queries, so differences are taken seed by
seed and query by query. Seeds and queries are crossed: every seed answers the same queries. Drawing
queries anew inside every drawn seed would treat hard queries as if each seed had its own, and give
an interval that is too narrow.

With u_sc the difference of seed s in the queries of video c, from which the mean is taken, a draw
resamples the seeds' means a_s and, independently, the videos' means b_c (Owen, Annals of Applied
Statistics 1(2), 2007, on crossed data):

    mean + f (k mean(a*) + mean(b*))

Both parts hold the noise e_sc = u_sc - a_s - b_c of single answers, which must count once:
f^2 = (V_a + V_b - V_e) / (V_a + V_b) with the variances of the mean of each part, as in a two-way
analysis of variance. Few seeds need wider tails than a bootstrap gives (Hesterberg, The American
Statistician 69(4), 2015): k = sqrt(n / (n - 1)) t / z, with the quantiles t of Student's
distribution and z of the normal one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
# With fewer, the spread of the seeds is known too poorly for an interval.
LEAST_SEEDS = 5
DRAWS = 10_000
# Differences that are apart by less than this share of the values are equal but for rounding.
EQUAL = 1e-9
DRAWN_AT_ONCE = 4_194_304  # numbers in memory


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of a difference.

    queries: whether queries were drawn too; False: seeds alone.
    """

    low: float
    high: float
    queries: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference has the same sign at both ends."""
        return self.low > 0 or self.high < 0


def paired_interval(
    own: np.ndarray,
    other: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Return the interval of the mean of `own` minus the mean of `other`.

    Args:
        own, other: float [n, q] of n seeds and q queries, paired in both axes; without queries
            [n, 1], the value of each seed.
        clusters: int [q], equal for queries that are drawn together, numbers from 0; None: seeds
            alone are drawn.
        confidence: probability that the interval covers the difference.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        None for fewer seeds than `LEAST_SEEDS`, and where all differences are equal: their
        spread is zero.

    Raises:
        ValueError: arrays of other shapes.
    """
    if own.shape != other.shape or own.ndim != 2 or not own.size:
        raise ValueError(f"rows must be [seeds, queries] alike, got {own.shape} and {other.shape}")
    if clusters is not None and clusters.shape != own.shape[1:]:
        raise ValueError(f"clusters must be [{own.shape[1]}], got {clusters.shape}")
    seeds = len(own)
    if seeds < LEAST_SEEDS:
        return None
    difference = own - other
    if np.ptp(difference) <= EQUAL * max(np.abs(own).max(), np.abs(other).max()):
        return None
    sizes = np.ones(own.shape[1]) if clusters is None else np.bincount(clusters).astype(float)
    sums = (
        difference
        if clusters is None
        else np.stack([np.bincount(clusters, row) for row in difference])
    )
    mean = sums.sum() / (seeds * sizes.sum())
    parts = (sums - mean * sizes) / sizes.mean()
    of_seeds, of_videos = parts.mean(axis=1), parts.mean(axis=0)
    generator = np.random.default_rng(seed)
    drawn = _few_seeds_factor(seeds, confidence) * _drawn_means(generator, of_seeds, draws)
    if clusters is not None and len(sizes) > 1:
        drawn += _drawn_means(generator, of_videos, draws)
        noise = parts - of_seeds[:, None] - of_videos
        cells = (seeds - 1) * (len(sizes) - 1) * parts.size
        variances = [_variance_of_mean(of_seeds), _variance_of_mean(of_videos)]
        once = max(sum(variances) - float((noise**2).sum()) / cells, *variances)
        drawn *= math.sqrt(once / sum(variances)) if once > 0 else 1.0
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(mean + low), float(mean + high), clusters is not None)


def _drawn_means(generator: np.random.Generator, values: np.ndarray, draws: int) -> np.ndarray:
    count = len(values)
    at_once = max(1, DRAWN_AT_ONCE // count)
    parts = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    drawn = (values[generator.integers(0, count, size=(part, count))] for part in parts)
    return np.concatenate([each.mean(axis=1) for each in drawn])


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values)


def _few_seeds_factor(count: int, confidence: float) -> float:
    from scipy import stats

    tail = 0.5 + confidence / 2
    wider = stats.t.ppf(tail, count - 1) / stats.norm.ppf(tail)
    return float(math.sqrt(count / (count - 1)) * wider)
