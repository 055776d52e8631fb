"""Boundaries in time of a cut-and-pasted clip, found from the features of its segments alone.

The search knows how long a run of own segments may be, and nothing else. Among all such runs it
takes the one that splits the segments into the two most different parts: the largest squared
distance of the parts' means, times their sizes over the number of segments, which is the variance
that the split explains. Which of the two parts is the clip's own is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from svilm_fast.data.config import run_lengths

# Relative difference of explained variances that counts as equal.
EQUAL = 1e-6


def possible_boundaries(segments: int, shortest: float, longest: float) -> list[tuple[int, ...]]:
    """Return the different boundaries that cut-and-paste can make: places between segments.

    A boundary p lies before segment p. A run that touches an end of the clip has one boundary.

    Raises ValueError where no run has a length between the two shares.
    """
    least, most = run_lengths(segments, shortest, longest)
    found = {
        tuple(place for place in (start, start + length) if 0 < place < segments)
        for length in range(least, most + 1)
        for start in range(segments - length + 1)
    }
    return sorted(found)


def boundaries_of(own: np.ndarray) -> tuple[int, ...]:
    """Return the boundaries of a paste mask, bool [T]."""
    return tuple(int(place) for place in np.flatnonzero(np.diff(own)) + 1)


def explained_variances(features: np.ndarray, candidates: Iterable[tuple[int, ...]]) -> np.ndarray:
    """Return the variance that each split explains: features [T, D] to float64 [candidates]."""
    features = features.astype(np.float64)
    count = len(features)
    found = []
    for boundaries in candidates:
        inside = np.zeros(count, dtype=bool)
        ends = (*boundaries, count) if len(boundaries) == 1 else boundaries
        inside[ends[0] : ends[1]] = True
        gap = features[inside].mean(axis=0) - features[~inside].mean(axis=0)
        found.append(inside.sum() * (~inside).sum() / count * float(gap @ gap))
    return np.array(found)


def found_boundaries(
    features: np.ndarray, own: np.ndarray, candidates: list[tuple[int, ...]]
) -> float:
    """Return how probably the best split is the true one; equally good splits share it.

    features: [T, D] of the segments of a clip. own: bool [T], its paste mask.
    """
    explained = explained_variances(features, candidates)
    best = explained >= explained.max() * (1 - EQUAL)
    return float(best[candidates.index(boundaries_of(own))]) / int(best.sum())


@dataclass(frozen=True)
class SegmentSimilarity:
    """Cosine similarity of the different segments of a clip: mean, lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, features: np.ndarray) -> SegmentSimilarity:
        """Compare at least two segments, [T, D]."""
        cosines = cosine_similarity(features)[~np.eye(len(features), dtype=bool)]
        return cls(float(cosines.mean()), float(cosines.min()), float(cosines.max()))


def cosine_similarity(features: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of every pair of rows, float64 [T, T]."""
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def similarity_across(features: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """Return the mean similarity of different segments of one part, and of the two parts.

    features: [T, D], T at least 3. own: bool [T], with segments of both kinds.
    """
    cosines = cosine_similarity(features)
    same = own[:, None] == own
    within = cosines[same & ~np.eye(len(own), dtype=bool)]
    return float(within.mean()), float(cosines[~same].mean())
