"""mAP of temporal localization: cases computed by hand, brute force, scikit-learn."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.formats.activitynet import AnnotatedSegment as Truth
from svilm_fast.data.formats.activitynet import PredictedSegment as Guess
from svilm_fast.evaluation.localization import (
    ACTIVITYNET_THRESHOLDS,
    average_precision,
    interval_iou,
    localization_map,
    without_duplicates,
)


def at_half(truths, predictions, **options):
    """mAP@0.5 as a share."""
    result = localization_map(truths, predictions, thresholds=(0.5,), **options)
    return result.metrics()["localization/mAP@0.50"] / 100


def test_thresholds_are_those_of_the_official_evaluator():
    assert np.allclose(ACTIVITYNET_THRESHOLDS, np.linspace(0.5, 0.95, 10), atol=1e-12)
    assert 0.55 in ACTIVITYNET_THRESHOLDS  # not 0.55000000000000004


def test_equal_scores_are_ordered_by_video_and_start():
    # Right in video b, wrong in a: with equal scores a comes first, so AP is 1/2.
    truths = {"a": [], "b": [Truth(0, 10, "x")]}
    wrong, right = Guess(0, 10, "x", 0.7), Guess(0, 10, "x", 0.7)
    assert at_half(truths, {"b": [right], "a": [wrong]}) == 0.5
    # Inside a video the earlier one comes first, whatever the order of the file.
    truths = {"a": [Truth(20, 30, "x")]}
    later, earlier = Guess(20, 30, "x", 0.7), Guess(0, 10, "x", 0.7)
    assert at_half(truths, {"a": [later, earlier]}) == 0.5


def test_a_ground_truth_is_matched_once_at_each_threshold():
    truths = {"a": [Truth(0, 10, "x"), Truth(50, 60, "x")]}
    predictions = {
        "a": [Guess(0, 10, "x", 0.9), Guess(0, 10, "x", 0.8), Guess(50, 60, "x", 0.7)],
    }
    # Hits 1, 0, 1: precision 1 at recall 1/2 and 2/3 at recall 1.
    assert at_half(truths, predictions) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_a_taken_ground_truth_leaves_the_next_best_one():
    truths = {"a": [Truth(0, 10, "x"), Truth(2, 12, "x")]}
    # Both predictions fit the first best; the second one has IoU 8/12 with the other.
    predictions = {"a": [Guess(0, 10, "x", 0.9), Guess(0, 10, "x", 0.8)]}
    assert at_half(truths, predictions) == 1.0


def test_prediction_at_exactly_the_threshold_counts():
    assert at_half({"a": [Truth(0, 10, "x")]}, {"a": [Guess(0, 5, "x", 0.9)]}) == 1.0


def test_unknown_label():
    truths = {"a": [Truth(0, 10, "x")]}
    predictions = {"a": [Guess(0, 10, "x", 0.5), Guess(0, 10, "jump", 0.9)]}
    with pytest.raises(UserError, match=r"'jump'.*--unknown-labels ignore"):
        localization_map(truths, predictions)
    result = localization_map(truths, predictions, unknown_labels="ignore")
    assert result.average == 100.0
    assert result.protocol["predictions_with_unknown_labels"] == 1


def test_a_class_without_predictions_counts_as_zero():
    truths = {"a": [Truth(0, 10, "x"), Truth(0, 10, "y")]}
    assert at_half(truths, {"a": [Guess(0, 10, "x", 0.9)]}) == 0.5
    assert at_half(truths, {}) == 0.0


def test_duplicates_with_and_without_removal():
    truths = {"a": [Truth(0, 10, "x"), Truth(0.0005, 10.001, "x"), Truth(3, 3.0005, "x")]}
    predictions = {"a": [Guess(0, 10, "x", 0.9)]}
    assert at_half(truths, predictions) == pytest.approx(1 / 3)
    assert at_half(truths, predictions, dedupe="actionformer") == 1.0
    result = localization_map(truths, predictions, dedupe="actionformer")
    assert result.protocol["duplicates_removed"] == 2
    assert result.protocol["duplicate_rule"] == "actionformer"


def test_duplicates_are_of_one_label():
    both = [Truth(0, 10, "x"), Truth(0, 10, "y")]
    assert without_duplicates(both, "actionformer") == both


def test_predictions_in_a_video_without_ground_truth_are_false_positives():
    truths = {"a": [Truth(0, 10, "x")], "empty": []}
    predictions = {
        "empty": [Guess(0, 10, "x", 0.9)],
        "elsewhere": [Guess(0, 10, "x", 0.8)],
        "a": [Guess(0, 10, "x", 0.7)],
    }
    assert at_half(truths, predictions) == pytest.approx(1 / 3)
    result = localization_map(truths, predictions)
    assert result.protocol["predicted_videos_outside_the_subset"] == 1


def test_a_prediction_beyond_the_video_is_kept_and_counted():
    truths = {"a": [Truth(0, 10, "x")]}
    predictions = {"a": [Guess(0, 16, "x", 0.9)]}
    result = localization_map(truths, predictions, durations={"a": 10.0})
    # IoU 10/16 = 0.625: clipped to the video it would be 1.
    assert result.map_by_threshold[0.6] == 100.0
    assert result.map_by_threshold[0.65] == 0.0
    assert result.protocol["predictions_beyond_the_video"] == 1


def test_blocked_videos_are_left_out_on_both_sides():
    truths = {"a": [Truth(0, 10, "x")], "b": [Truth(0, 10, "x"), Truth(20, 30, "y")]}
    predictions = {"a": [Guess(0, 10, "x", 0.5)], "b": [Guess(40, 50, "x", 0.9)]}
    result = localization_map(truths, predictions, blocked=frozenset({"b", "other"}))
    assert result.average == 100.0
    assert result.classes == ("x",)
    assert (result.protocol["blocked_videos"], result.protocol["annotations"]) == (1, 1)


def test_no_annotation_is_an_error():
    with pytest.raises(UserError, match="no annotation"):
        localization_map({"a": []}, {})


def test_result_files_hold_numbers_and_protocol(tmp_path):
    truths = {"a": [Truth(0, 10, "x")]}
    result = localization_map(truths, {}, protocol={"classifier": "none", "blocked_sha256": None})
    result.write(tmp_path, "test_localization")
    written = json.loads((tmp_path / "test_localization.json").read_text())
    assert written["metrics"]["localization/mAP"] == 0.0
    assert written["protocol"]["classifier"] == "none"
    assert written["ap_by_class"] == {"x": [0.0] * 10}
    text = (tmp_path / "test_localization.txt").read_text()
    assert "classifier: none" in text
    assert "annotations: 1" in text


def brute_force_iou(a, b):
    low, high = max(a[0], b[0]), min(a[1], b[1])
    shared = max(high - low, 0)
    joined = a[1] - a[0] + b[1] - b[0] - shared
    return shared / joined if joined else 0.0


def brute_force_map(truths, predictions, threshold):
    """The evaluator's text, one prediction at a time; VOC's precision at each recall."""
    labels = dict.fromkeys(s.label for segments in truths.values() for s in segments)
    means = []
    for label in labels:
        queue = []
        for video, segments in predictions.items():
            queue += [(-s.score, video, s.start, s.end) for s in segments if s.label == label]
        queue.sort()
        free = {
            (video, place)
            for video, segments in truths.items()
            for place, s in enumerate(segments)
            if s.label == label
        }
        total, points, right = len(free), [], 0
        for seen, (_, video, start, end) in enumerate(queue, 1):
            options = [
                (-brute_force_iou((start, end), truths[video][place][:2]), place)
                for name, place in free
                if name == video
            ]
            if options and -min(options)[0] >= threshold:
                free.remove((video, min(options)[1]))
                right += 1
            points.append((Fraction(right, total), Fraction(right, seen)))
        area, last = Fraction(0), Fraction(0)
        for recall in sorted({r for r, _ in points}):
            area += (recall - last) * max(p for r, p in points if r >= recall)
            last = recall
        means.append(area)
    return float(sum(means) / len(means))


def random_case(draw):
    """Few videos, times and scores, so that ties of every kind occur."""
    videos = [f"v{n}" for n in range(draw.randint(1, 3))]
    labels = "xyz"[: draw.randint(1, 3)]

    def segment():
        start = draw.randint(0, 6)
        return start, start + draw.randint(1, 6), draw.choice(labels)

    truths = {v: [Truth(*segment()) for _ in range(draw.randint(0, 4))] for v in videos}
    truths[videos[0]].append(Truth(0, 4, labels[0]))
    known = {s.label for segments in truths.values() for s in segments}
    guesses = {
        v: [Guess(*segment(), draw.randint(1, 4) / 4) for _ in range(draw.randint(0, 5))]
        for v in videos
    }
    return truths, {v: [g for g in row if g.label in known] for v, row in guesses.items()}


def test_ten_thousand_random_cases_equal_brute_force():
    draw = random.Random(12)
    for case in range(10_000):
        truths, predictions = random_case(draw)
        # Powers of two are exact in binary, as is the IoU of small whole numbers at these.
        threshold = draw.choice((0.25, 0.5, 0.75))
        found = localization_map(truths, predictions, thresholds=(threshold,)).average / 100
        expected = brute_force_map(truths, predictions, threshold)
        assert found == pytest.approx(expected, abs=1e-12), (case, truths, predictions, threshold)


def test_average_precision_is_scikit_learns_where_precision_only_falls():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(3)
    for _ in range(200):
        # All hits before all misses but for misses at the end: the envelope changes nothing.
        right, wrong = draw.integers(1, 6), draw.integers(0, 6)
        hits = np.array([True] * right + [False] * wrong)
        scores = np.arange(len(hits), 0, -1)
        expected = metrics.average_precision_score(hits, scores)
        assert average_precision(hits, int(right)) == pytest.approx(expected)


def test_average_precision_is_an_upper_envelope_of_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(4)
    for _ in range(200):
        hits = draw.random(draw.integers(1, 20)) < 0.5
        if not hits.any():
            continue
        scores = np.arange(len(hits), 0, -1)
        precision, recall, _ = metrics.precision_recall_curve(hits, scores)
        envelope = np.maximum.accumulate(precision)  # recall falls along the array
        expected = -np.sum(np.diff(recall) * envelope[:-1])
        assert average_precision(hits, int(hits.sum())) == pytest.approx(expected)


def test_iou_of_empty_segments_is_zero():
    assert interval_iou((3, 3), np.array([[3.0, 3.0], [2.0, 4.0]])).tolist() == [0.0, 0.0]
    assert interval_iou((0, 10), np.array([[5.0, 15.0], [20.0, 30.0]])).tolist() == [
        pytest.approx(1 / 3),
        0.0,
    ]
