"""Soft-NMS and voting, by hand and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svilm_fast.evaluation.class_fusion import fuse_classes
from svilm_fast.evaluation.soft_nms import SoftNmsSettings, soft_nms, thinned_out

SEGMENTS = np.array([[0.0, 10.0], [5.0, 15.0], [20.0, 30.0]])
SCORES = np.array([0.9, 0.8, 0.7])


def test_scores_decay_by_the_overlap():
    taken, scores = soft_nms(SEGMENTS, SCORES, sigma=0.5, min_score=0.001, keep=10)
    # IoU 1/3 of the first two: 0.8 exp(-(1/9) / 0.5) = 0.6406 < 0.7.
    assert taken.tolist() == [0, 2, 1]
    assert scores == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2 / 9)], abs=1e-6)


def test_limits():
    assert len(soft_nms(SEGMENTS, SCORES, sigma=0.5, min_score=0.65, keep=10)[0]) == 2
    assert len(soft_nms(SEGMENTS, SCORES, sigma=0.5, min_score=0.0, keep=2)[0]) == 2
    assert len(soft_nms(np.empty((0, 2)), np.empty(0), sigma=0.5, min_score=0.0, keep=2)[0]) == 0


def plain_soft_nms(segments, scores, sigma, min_score, keep):
    left = {i: float(s) for i, s in enumerate(scores)}
    result = []
    while left and len(result) < keep:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score < min_score:
            break
        result.append((best, score))
        a = segments[best]
        for i in left:
            b = segments[i]
            shared = max(0.0, min(a[1], b[1]) + 1e-6 - max(a[0], b[0]))
            joined = a[1] - a[0] + b[1] - b[0] + 2e-6 - shared
            left[i] *= math.exp(-((shared / joined) ** 2) / sigma)
    return result


def test_random_cases_equal_a_plain_loop():
    draw = np.random.default_rng(5)
    for _ in range(300):
        count = int(draw.integers(0, 12))
        starts = draw.integers(0, 10, count)
        segments = np.stack([starts, starts + draw.integers(0, 10, count)], 1).astype(float)
        scores = draw.integers(1, 6, count) / 5
        options = {"sigma": float(draw.choice([0.3, 0.75])), "min_score": 0.05, "keep": 7}
        taken, found = soft_nms(segments, scores, **options)
        expected = plain_soft_nms(segments, scores, *options.values())
        assert taken.tolist() == [i for i, _ in expected]
        assert found == pytest.approx([s for _, s in expected])


def test_voting_moves_a_segment_to_the_mean_of_its_supporters():
    segments = np.array([[0.0, 10.0], [0.0, 9.5], [50.0, 60.0]])
    scores = np.array([0.8, 0.4, 0.3])
    settings = SoftNmsSettings(voting=0.9, keep=1)
    kept = thinned_out(segments, scores, np.zeros(3, int), settings)
    end = (0.8 * 10 + 0.4 * 0.95 * 9.5) / (0.8 + 0.4 * 0.95)
    assert kept.segments == pytest.approx(np.array([[0.0, end]]), abs=1e-5)
    without = thinned_out(segments, scores, np.zeros(3, int), SoftNmsSettings(voting=0, keep=1))
    assert without.segments.tolist() == [[0.0, 10.0]]


def test_per_class_suppression_leaves_other_classes_alone():
    segments = np.array([[0.0, 10.0], [0.0, 10.0]])
    labels = np.array([1, 0])
    scores = np.array([0.9, 0.8])
    kept = thinned_out(segments, scores, labels, SoftNmsSettings(per_class=True, voting=0))
    assert kept.scores.tolist() == [0.9, 0.8]
    assert kept.labels.tolist() == [1, 0]
    kept = thinned_out(segments, scores, labels, SoftNmsSettings(voting=0))
    assert kept.scores[1] == pytest.approx(0.8 * math.exp(-1 / 0.75))


def test_only_the_best_enter_and_few_are_kept():
    segments = np.array([[n * 20.0, n * 20.0 + 10] for n in range(6)])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    kept = thinned_out(segments, scores, np.arange(6), SoftNmsSettings(before=3, keep=2))
    assert kept.labels.tolist() == [5, 4]


def test_fusion_with_the_video_level_classifier():
    classes = np.array([0.1, 0.64, 0.25, 0.01])
    fused = fuse_classes(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([0.25, 1.0]), classes, top=2)
    assert fused.labels.tolist() == [1, 2, 1, 2]
    assert fused.scores == pytest.approx([0.4, 0.25, 0.8, 0.5])
    assert fused.segments.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    product = fuse_classes(np.array([[0.0, 1.0]]), np.array([0.5]), classes, top=1, rule="product")
    assert product.scores == pytest.approx([0.32])
