"""Accuracy of a classifier: top-k, their mean, and the mean over classes, with ties by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOP_KS = (1, 5)


def top_k_shares(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return how probably the label of each row is among its k highest scores, float64 [n].

    A label whose score equals others takes their places in random order, so that constant scores
    give the accuracy of guessing.

    scores: [n, C], finite. labels: int [n]; -1, a label that is not among the classes, gives 0.
    """
    known = labels >= 0
    shares = np.zeros(len(labels))
    rows = scores[known]
    own = np.take_along_axis(rows, labels[known][:, None], axis=1)
    higher, equal = (rows > own).sum(axis=1), (rows == own).sum(axis=1)
    shares[known] = np.clip(k - higher, 0, equal) / equal
    return shares


@dataclass(frozen=True)
class ClassAccuracy:
    """Videos of a class, and the expected number that top-1 classifies right."""

    videos: int
    right: float

    @property
    def accuracy(self) -> float:
        """Percentage."""
        return 100 * self.right / self.videos


@dataclass(frozen=True)
class RecognitionScores:
    """Percentages over all videos.

    videos: all that count, also those that were not decoded. top1, top5: with fewer than five
    classes top5 is 100. mean: of top1 and top5. mean_per_class: of the top-1 accuracy of every
    class that has videos. classes: by class that has videos, in the order of the classes.
    """

    videos: int
    top1: float
    top5: float
    mean_per_class: float
    classes: dict[int, ClassAccuracy]

    @property
    def mean(self) -> float:
        return (self.top1 + self.top5) / 2

    def percentages(self) -> dict[str, float]:
        """The four percentages by the names of their metrics."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_of_top1_and_top5": self.mean,
            "mean_per_class": self.mean_per_class,
        }


def recognition_scores(
    scores: np.ndarray, labels: np.ndarray, missing: Sequence[int] = ()
) -> RecognitionScores:
    """Score videos.

    scores: [n, C], finite, of any scale. labels: int [n], -1 for a label that is not among the
    classes. missing: labels of further videos without scores, which count as wrong.

    Raises ValueError for no videos.
    """
    lost = np.asarray(missing, dtype=np.int64)
    count = len(labels) + len(lost)
    if not count:
        raise ValueError("there are no videos to score")
    first, fifth = (top_k_shares(scores, labels, k) for k in TOP_KS)
    every = np.concatenate([labels, lost])
    right = np.concatenate([first, np.zeros(len(lost))])
    classes = {
        int(label): ClassAccuracy(int((every == label).sum()), float(right[every == label].sum()))
        for label in np.unique(every[every >= 0])
    }
    # Videos whose label is no class of the model are one further class that is always wrong.
    per_class = [each.accuracy for each in classes.values()] + [0.0] * bool((every < 0).any())
    return RecognitionScores(
        videos=count,
        top1=100 * float(first.sum()) / count,
        top5=100 * float(fifth.sum()) / count,
        mean_per_class=float(np.mean(per_class)),
        classes=classes,
    )


def confusion_counts(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count how often class i is given the label j, int64 [C, C]; of equal scores the first wins.

    scores: [n, C]. labels: int [n]; rows with -1 are left out.
    """
    known, classes = labels >= 0, scores.shape[1]
    given = scores[known].argmax(axis=1) if known.any() else np.zeros(0, dtype=np.int64)
    return np.bincount(labels[known] * classes + given, minlength=classes**2).reshape(classes, -1)
