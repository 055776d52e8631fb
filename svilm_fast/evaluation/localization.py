"""Temporal localization: mean average precision over temporal IoU thresholds.

The semantics are those of ActivityNet's evaluator (activitynet/ActivityNet, `eval_detection.py`);
where it leaves an order open, this one fixes it: predictions by falling score, then by video, start
and end; ground truths of equal IoU in the order of the file.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from svilm_fast.core.console import Console
from svilm_fast.core.errors import UserError
from svilm_fast.core.files import json_text, write_atomically
from svilm_fast.core.text import counted
from svilm_fast.data.formats.activitynet import AnnotatedSegment, PredictedSegment

ACTIVITYNET_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
THUMOS_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SAME_S = 1e-3  # ActionFormer: annotations closer than this are the same one

Dedupe = Literal["none", "actionformer"]


GroundTruths = Mapping[str, Sequence[AnnotatedSegment]]
Predictions = Mapping[str, Sequence[PredictedSegment]]


@dataclass(frozen=True)
class LocalizationResult:
    """Average precision of every class at every threshold.

    thresholds: T. classes: C, in the order of the annotations. ap: float64 [T, C] in [0, 1].
    protocol: what the number depends on, printed with it.
    """

    thresholds: tuple[float, ...]
    classes: tuple[str, ...]
    ap: np.ndarray
    protocol: dict[str, Any] = field(default_factory=dict)
    name: str = "localization"

    @property
    def map_by_threshold(self) -> dict[float, float]:
        """Mean over the classes at every threshold, in percent."""
        return {t: 100 * float(row.mean()) for t, row in zip(self.thresholds, self.ap)}

    @property
    def average(self) -> float:
        """Mean over classes and thresholds, in percent."""
        return 100 * float(self.ap.mean())

    def metrics(self) -> dict[str, float]:
        """`localization/mAP@0.50` for every threshold, then their mean `localization/mAP`.

        If the protocol lists videos without features, their number follows.
        """
        found = {f"{self.name}/mAP@{t:.2f}": value for t, value in self.map_by_threshold.items()}
        found[f"{self.name}/mAP"] = self.average
        if (missing := self.protocol.get("videos_without_features")) is not None:
            found[f"{self.name}/videos_without_features"] = float(len(missing))
        return found

    def lines(self) -> list[str]:
        """The protocol as lines of text."""
        return [f"{name.replace('_', ' ')}: {_text(v)}" for name, v in self.protocol.items()]

    def table(self) -> Table:
        """The columns of the papers, and the protocol below."""
        named = [t for t in (0.5, 0.75, 0.95) if t in self.thresholds]
        shown = named if len(named) == 3 else list(self.thresholds)
        table = Table(title="mAP, %", caption="\n".join(self.lines()), caption_justify="left")
        for threshold in shown:
            table.add_column(f"{threshold:g}", justify="right")
        first, last = self.thresholds[0], self.thresholds[-1]
        table.add_column(f"average {first:g} to {last:g}", justify="right")
        means = self.map_by_threshold
        table.add_row(*(f"{means[t]:.2f}" for t in shown), f"{self.average:.2f}")
        return table

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "metrics": self.metrics(),
            "protocol": self.protocol,
            "thresholds": list(self.thresholds),
            "ap_by_class": {
                label: [round(float(v), 6) for v in self.ap[:, place]]
                for place, label in enumerate(self.classes)
            },
        }

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.json", json_text(self.to_json()).encode())
        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        write_atomically(folder / f"{name}.txt", text.getvalue().encode())


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def interval_iou(segment: Sequence[float] | np.ndarray, others: np.ndarray) -> np.ndarray:
    """Temporal IoU of one segment with `others` [n, 2]: float64 [n]; 0 where both are empty."""
    shared = np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0])
    shared = shared.clip(min=0)
    joined = (segment[1] - segment[0]) + (others[:, 1] - others[:, 0]) - shared
    return np.divide(shared, joined, out=np.zeros(len(others)), where=joined > 0)


def average_precision(hits: np.ndarray, total: int) -> float:
    """Area under the precision envelope (VOC 2011) of predictions in falling order of score.

    hits: bool [n], whether each is a true positive. total: number of ground truths, at least 1.
    """
    right = np.cumsum(hits)
    recall = np.concatenate([[0.0], right / total, [1.0]])
    precision = np.concatenate([[0.0], right / np.arange(1, len(hits) + 1), [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def without_duplicates(
    segments: Sequence[AnnotatedSegment], rule: Dedupe
) -> list[AnnotatedSegment]:
    """Apply the duplicate rule to the annotations of one video.

    actionformer: an annotation is left out if it is shorter than 1e-3 s, or starts and ends within
    1e-3 s of an earlier one with the same label.
    """
    if rule == "none":
        return list(segments)
    kept: list[AnnotatedSegment] = []
    for one in segments:
        repeated = any(
            one.label == other.label
            and abs(one.start - other.start) <= SAME_S
            and abs(one.end - other.end) <= SAME_S
            for other in kept
        )
        if one.end - one.start >= SAME_S and not repeated:
            kept.append(one)
    return kept


def localization_map(
    truths: GroundTruths,
    predictions: Predictions,
    *,
    thresholds: Sequence[float] = ACTIVITYNET_THRESHOLDS,
    dedupe: Dedupe = "none",
    blocked: frozenset[str] = frozenset(),
    unknown_labels: Literal["error", "ignore"] = "error",
    durations: Mapping[str, float | None] | None = None,
    protocol: Mapping[str, Any] | None = None,
    name: str = "localization",
) -> LocalizationResult:
    """Evaluate predictions against the annotations of a subset.

    A prediction is a true positive at a threshold if an annotation of its class and video, not yet
    taken by a prediction of higher score, has at least that IoU; of several, the one of highest
    IoU is taken. A class without predictions has AP 0 and counts in the mean. Predictions in videos
    without annotations of the class are false positives.

    Args:
        truths: the videos of the subset, also those without annotations.
        blocked: videos whose annotations and predictions are left out.
        unknown_labels: what happens to predictions of a label that no annotation has.
        durations: of the videos, to count predictions that reach beyond them (they are kept).
        protocol: further facts to print; the rules applied here are added.

    Raises UserError without annotations, and for a prediction with an unknown label.
    """
    kept = {
        video: without_duplicates(segments, dedupe)
        for video, segments in truths.items()
        if video not in blocked
    }
    # Classes in the order of the file, before anything is blocked.
    labels = tuple(dict.fromkeys(s.label for segments in truths.values() for s in segments))
    counts = Counter(s.label for segments in kept.values() for s in segments)
    classes = tuple(label for label in labels if counts[label])
    if not classes:
        raise UserError("there is no annotation to evaluate against in the subset")
    by_class: dict[str, list[tuple[str, PredictedSegment]]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    outside = beyond = 0
    for video, segments in predictions.items():
        if video in blocked:
            continue
        outside += video not in kept and bool(segments)
        length = (durations or {}).get(video)
        for one in segments:
            if one.label in counts:
                by_class[one.label].append((video, one))
            elif one.label not in labels:
                unknown[one.label] += 1
            beyond += length is not None and (one.end > length + SAME_S or one.start < 0)
    if unknown and unknown_labels == "error":
        label, times = unknown.most_common(1)[0]
        raise UserError(
            f"{counted(sum(unknown.values()), 'prediction')} with a label that no annotation of "
            f"the subset has, for example {label!r} ({times}); correct the labels, or leave such "
            "predictions out with --unknown-labels ignore"
        )
    levels = np.asarray(thresholds, dtype=np.float64)
    ap = np.zeros((len(levels), len(classes)))
    for place, label in enumerate(classes):
        segments_of = {
            video: np.array([s[:2] for s in segments if s.label == label])
            for video, segments in kept.items()
            if any(s.label == label for s in segments)
        }
        hits = true_positives(segments_of, by_class[label], levels)
        ap[:, place] = [average_precision(row, counts[label]) for row in hits]
    facts: dict[str, Any] = dict(protocol or {})
    facts |= {
        "videos": len(kept),
        "annotations": sum(counts.values()),
        "classes": len(classes),
        "duplicate_rule": dedupe,
        "duplicates_removed": sum(
            len(s) - len(kept[video]) for video, s in truths.items() if video in kept
        ),
        "blocked_videos": len(blocked & set(truths)),
        "predictions": sum(len(s) for video, s in predictions.items() if video not in blocked),
        "videos_without_predictions": sum(not predictions.get(video) for video in kept),
        "predictions_with_unknown_labels": sum(unknown.values()),
        "predicted_videos_outside_the_subset": outside,
        "predictions_beyond_the_video": beyond,
        "tie_rule": "score, video, start, end",
    }
    return LocalizationResult(tuple(thresholds), classes, ap, facts, name)


def true_positives(
    truths: Mapping[str, np.ndarray],
    predictions: Sequence[tuple[str, PredictedSegment]],
    thresholds: np.ndarray,
) -> np.ndarray:
    """Match the predictions of one class, in falling order of score.

    truths: annotations [n, 2] of each video that has the class. thresholds: float64 [T].
    Returns bool [T, p] in that order.
    """
    ordered = sorted(predictions, key=lambda p: (-p[1].score, p[0], p[1].start, p[1].end))
    hits = np.zeros((len(thresholds), len(ordered)), dtype=bool)
    taken = {video: np.zeros((len(thresholds), len(s)), dtype=bool) for video, s in truths.items()}
    lowest = thresholds.min()
    for place, (video, segment) in enumerate(ordered):
        if video not in truths:
            continue
        overlap = interval_iou(segment[:2], truths[video])
        for truth in np.argsort(-overlap, kind="stable"):
            if overlap[truth] < lowest:
                break
            free = ~hits[:, place] & ~taken[video][:, truth] & (overlap[truth] >= thresholds)
            hits[free, place] = True
            taken[video][free, truth] = True
    return hits
