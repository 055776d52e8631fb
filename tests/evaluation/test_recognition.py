"""Top-k accuracy with ties, means and confusion equal brute force."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from svilm_fast.evaluation.recognition import (
    confusion_counts,
    recognition_scores,
    top_k_shares,
)

CASES = 10_000


def brute_force(scores: tuple, label: int, k: int) -> Fraction:
    """Over all orders of the classes that are by falling score, the share with the label in k."""
    if label < 0:
        return Fraction(0)
    hits = total = 0
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            total += 1
            hits += label in order[:k]
    return Fraction(hits, total)


def test_top_k_with_ties_equals_brute_force():
    random = np.random.default_rng(0)
    known: dict[tuple, Fraction] = {}
    for _ in range(CASES // 100):
        classes, k = random.integers(1, 5), int(random.integers(1, 6))
        scores = random.integers(0, 3, (100, classes)).astype(float)
        labels = random.integers(-1, classes, 100)
        found = top_k_shares(scores, labels, k)
        for row, label, share in zip(scores, labels, found, strict=True):
            case = (tuple(row), int(label), k)
            if case not in known:
                known[case] = brute_force(*case)
            assert share == pytest.approx(float(known[case]), abs=1e-12)


def test_scores_equal_loops_over_videos():
    random = np.random.default_rng(1)
    for _ in range(CASES):
        videos, classes = random.integers(1, 7), random.integers(2, 8)
        scores = random.permuted(np.tile(np.arange(classes), (videos, 1)), axis=1).astype(float)
        labels = random.integers(-1, classes, videos)
        missing = random.integers(-1, classes, random.integers(0, 3)).tolist()
        found = recognition_scores(scores, labels, missing)
        ranks = [
            sum(other > row[label] for other in row) if label >= 0 else 99
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ] + [99] * len(missing)
        every = [*labels.tolist(), *missing]
        assert found.videos == len(every)
        assert found.top1 == pytest.approx(100 * sum(r < 1 for r in ranks) / len(every))
        assert found.top5 == pytest.approx(100 * sum(r < 5 for r in ranks) / len(every))
        assert found.mean == pytest.approx((found.top1 + found.top5) / 2)
        own = {
            label: [rank < 1 for rank, each in zip(ranks, every, strict=True) if each == label]
            for label in set(every)
        }
        means = [sum(hits) / len(hits) for hits in own.values()]
        assert found.mean_per_class == pytest.approx(100 * sum(means) / len(means))
        right = {label: (each.videos, each.right) for label, each in found.classes.items()}
        assert right == {k: (len(hits), sum(hits)) for k, hits in own.items() if k >= 0}
        counts = np.zeros((classes, classes), dtype=int)
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                counts[label, row.index(max(row))] += 1
        assert np.array_equal(confusion_counts(scores, labels), counts)


def test_constant_scores_give_the_accuracy_of_guessing():
    found = recognition_scores(np.zeros((10, 10)), np.arange(10))
    assert (found.top1, found.top5, found.mean_per_class) == pytest.approx((10, 50, 10))


def test_videos_that_were_not_decoded_are_wrong():
    found = recognition_scores(np.eye(3), np.arange(3), missing=[0, 0, 1])
    assert (found.videos, found.top1) == (6, 50.0)
    assert {label: each.videos for label, each in found.classes.items()} == {0: 3, 1: 2, 2: 1}
    nothing = recognition_scores(np.zeros((0, 3)), np.zeros(0, dtype=int), missing=[2])
    assert (nothing.top1, nothing.top5, nothing.mean_per_class) == (0, 0, 0)
    with pytest.raises(ValueError, match="no videos"):
        recognition_scores(np.zeros((0, 3)), np.zeros(0, dtype=int))
