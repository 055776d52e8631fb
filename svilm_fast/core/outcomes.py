"""What a model got right, query by query: the results that tests of differences are paired over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Outcomes:
    """The share of each query that is right, for metrics that are the mean share in percent.

    clusters: name of the video of each query; the queries of one video are drawn together. shares:
    float [q] in [0, 1] by the full name of the metric. All queries of `shares` are those of
    `clusters`, in their order.
    """

    clusters: Sequence[str]
    shares: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: a text of four-digit numbers for each metric."""
        return {
            "clusters": list(self.clusters),
            "shares": {name: shares_text(values) for name, values in self.shares.items()},
        }


def shares_text(values: np.ndarray) -> str:
    """Return shares as numbers of at most four digits, separated by spaces: one line of JSON."""
    return " ".join(f"{round(float(value), 4):g}" for value in values)


def shares_of(text: str) -> np.ndarray:
    """Return the shares that `shares_text` wrote, float64 [q]."""
    return np.array([float(word) for word in text.split()])


def cluster_numbers(clusters: Sequence[str]) -> tuple[str, str]:
    """Return a number for the cluster of each query, as text, and the SHA-256 of the names.

    Numbers count the clusters in the order in which they appear.
    """
    places: dict[str, int] = {}
    numbers = [places.setdefault(name, len(places)) for name in clusters]
    digest = hashlib.sha256("\n".join(clusters).encode()).hexdigest()
    return " ".join(map(str, numbers)), digest
