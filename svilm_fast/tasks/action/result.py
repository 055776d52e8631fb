"""The result of recognition on a split: accuracy, confusion, protocol and predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.core.outcomes import Outcomes
from svilm_fast.core.text import counted
from svilm_fast.evaluation.recognition import (
    TOP_KS,
    RecognitionScores,
    confusion_counts,
    recognition_scores,
    top_k_shares,
)
from svilm_fast.tasks.action.classes import ClassNames

GUESSES = 5  # classes that are kept for each video
TIES = "in random order, in expectation"


@dataclass(frozen=True)
class Recognised:
    """A video with its label and its best classes, best first; no guesses: not decoded."""

    video: str
    label: str | None
    guesses: tuple[tuple[str, float], ...]


@dataclass
class RecognitionResult:
    """Accuracy on a split.

    prefix: of its metrics. confusion: int64 [C, C], videos of class i that were given class j.
    protocol: what the numbers depend on. missing: videos that could not be found or decoded, with
    the reason; they count as wrong. videos: in the order of the split. shares: float [n] of every
    video, how probably its label is among the k best classes, by k.
    """

    prefix: str
    scores: RecognitionScores
    classes: ClassNames
    confusion: np.ndarray
    protocol: dict[str, Any]
    missing: dict[str, str]
    videos: list[Recognised] = field(repr=False)
    shares: dict[int, np.ndarray] = field(repr=False)
    with_videos: bool = True

    def metrics(self) -> dict[str, float]:
        """Percentages, and the number of videos that were not decoded, which count as wrong."""
        values = self.scores.percentages() | {"videos_not_decoded": float(len(self.missing))}
        return {f"{self.prefix}/{name}": value for name, value in values.items()}

    def outcomes(self) -> Outcomes:
        """Whether each video is right at top-1 and top-5."""
        shares = {f"{self.prefix}/top{k}": values for k, values in self.shares.items()}
        return Outcomes([each.video for each in self.videos], shares)

    def table(self) -> list[tuple[str, list[str]]]:
        """Rows of a class, its videos, the right ones and their share; the sum comes last."""
        rows = [
            (self.classes.names[place], [f"{c.videos}", f"{c.right:g}", f"{c.accuracy:.2f} %"])
            for place, c in self.scores.classes.items()
        ]
        every = self.scores
        right = every.top1 * every.videos / 100
        return [*rows, ("all", [f"{every.videos}", f"{right:g}", f"{every.top1:.2f} %"])]

    def lines(self) -> list[str]:
        """The protocol as lines of text."""
        return [f"{key.replace('_', ' ')}: {value}" for key, value in self.protocol.items()]

    def summary(self) -> list[str]:
        """The four percentages as lines of text, and the videos without frames if there are any."""
        names = ("top-1", "top-5", "mean of top-1 and top-5", "mean per class")
        values = self.scores.percentages().values()
        lines = [f"{name}: {value:.2f} %" for name, value in zip(names, values, strict=True)]
        if self.missing:
            count = counted(len(self.missing), "video")
            lines.append(f"not decoded, counted as wrong: {count}")
        return lines

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = self.metrics() | {
            "protocol": self.protocol,
            "classes": list(self.classes.names),
            "by_class": {
                self.classes.names[place]: asdict(each)
                for place, each in self.scores.classes.items()
            },
            "confusion": self.confusion.tolist(),
            "not_decoded": self.missing,
            "outcomes": [self.outcomes().to_json()],
        }
        if self.with_videos:
            content["videos"] = [asdict(each) for each in self.videos]
        text = json.dumps(content, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        rows = [("class", ["videos", "right", "top-1"]), *self.table()]
        width = max(len(row) for row, _ in rows) + 2
        lines = [f"{row:{width}}" + "".join(f"{cell:>10}" for cell in cells) for row, cells in rows]
        lines += ["", *self.summary(), "", *self.lines()]
        lines += [f"not decoded: {video}: {reason}" for video, reason in self.missing.items()]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def recognition_result(
    prefix: str,
    classes: ClassNames,
    labels: Mapping[str, str | None],
    scores: Mapping[str, np.ndarray],
    reasons: Mapping[str, str],
    protocol: Mapping[str, Any],
    *,
    with_videos: bool = True,
) -> RecognitionResult:
    """Score the videos of a split.

    labels: of all videos that count, in order; None: unknown. scores: [C] of every video that was
    decoded. reasons: why others were not. protocol: what is added to the part that all share.
    """
    seen = [video for video in labels if video in scores]
    lost = [video for video in labels if video not in scores]
    empty = np.zeros((0, len(classes)))
    table = np.stack([scores[video] for video in seen]) if seen else empty
    numbers = {video: classes.index.get(label or "", -1) for video, label in labels.items()}
    known = np.array([numbers[video] for video in seen], dtype=np.int64)
    videos = [
        Recognised(video, label, _best(scores.get(video), classes))
        for video, label in labels.items()
    ]
    lines = sorted(f"{video}\t{label or ''}" for video, label in labels.items())
    seen_places = np.array([video in scores for video in labels], dtype=bool)
    shares = {k: np.zeros(len(labels)) for k in TOP_KS}
    for k, values in shares.items():
        values[seen_places] = top_k_shares(table, known, k)
    return RecognitionResult(
        prefix=prefix,
        scores=recognition_scores(table, known, [numbers[video] for video in lost]),
        classes=classes,
        confusion=confusion_counts(table, known),
        protocol={
            "videos": len(labels),
            "videos_and_labels_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "videos_not_decoded": f"{len(lost)}, counted as wrong",
            "videos_outside_the_classes": sum(number < 0 for number in numbers.values()),
            "classes": len(classes),
            "classes_sha256": classes.sha256,
            "equal_scores": TIES,
            **protocol,
        },
        missing={video: reasons.get(video, "not decoded") for video in lost},
        videos=videos,
        shares=shares,
        with_videos=with_videos,
    )


def _best(row: np.ndarray | None, classes: ClassNames) -> tuple[tuple[str, float], ...]:
    if row is None:
        return ()
    order: Sequence[int] = np.argsort(-row, kind="stable")[:GUESSES].tolist()
    return tuple((classes.names[place], float(row[place])) for place in order)
