"""Gaussian soft-NMS of temporal segments (Bodla et al. 2017), and voting."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import Field

from svilm_fast.core.settings import Settings
from svilm_fast.evaluation.localization import interval_iou

LENGTH_MARGIN = 1e-6  # added to every end, so that an empty segment has a length


class SoftNmsSettings(Settings):
    """How overlapping predictions of a video are thinned out.

    The defaults are ActionFormer's for ActivityNet; G-TAD has sigma 0.8 and voting 0.95. THUMOS:
    per_class=true, keep 200.
    """

    before: int = Field(2000, ge=1, le=10**6, description="best predictions that enter")
    keep: int = Field(100, ge=1, le=10**6, description="most predictions of a video")
    sigma: float = Field(0.75, gt=0, le=100, description="scores decay by exp(-IoU^2 / sigma)")
    min_score: float = Field(1e-3, ge=0, le=1, description="predictions below are dropped")
    voting: float = Field(
        0.9, ge=0, le=1, description="IoU from which predictions vote on a kept one; 0: none"
    )
    per_class: bool = Field(False, description="only predictions of one class suppress each other")


class KeptSegments(NamedTuple):
    """segments float64 [n, 2], scores float64 [n] in falling order, labels int64 [n]."""

    segments: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, *, sigma: float, min_score: float, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take the best segment again and again; the scores of the others decay by their overlap.

    Equal scores are taken in the given order. Returns the indices int64 [n] of the kept segments
    and their scores when they were taken, float64 [n].
    """
    grown = _grown(np.asarray(segments, dtype=np.float64).reshape(-1, 2))
    left = np.asarray(scores, dtype=np.float64).copy()
    taken: list[int] = []
    found: list[float] = []
    while len(taken) < min(keep, len(left)):
        best = int(left.argmax())
        if left[best] < min_score or left[best] < 0:
            break
        taken.append(best)
        found.append(float(left[best]))
        left *= np.exp(-(interval_iou(grown[best], grown) ** 2) / sigma)
        left[taken] = -1.0
    return np.array(taken, dtype=np.int64), np.array(found)


def voted(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Replace each kept segment by the mean of those that overlap it by `iou` or more.

    The weights are score x IoU, with the scores before suppression. Returns float64 [n, 2].
    """
    grown = _grown(segments)
    result = np.empty_like(kept)
    for row, segment in enumerate(kept):
        overlap = interval_iou(_grown(segment), grown)
        weights = np.where(overlap >= iou, overlap * scores, 0.0)
        total = weights.sum()
        result[row] = segment if total <= 0 else weights @ segments / total
    return result


def _grown(segments: np.ndarray) -> np.ndarray:
    margin: np.ndarray = segments + np.array([0.0, LENGTH_MARGIN])
    return margin


def thinned_out(
    segments: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: SoftNmsSettings
) -> KeptSegments:
    """Apply selection, soft-NMS and voting to the predictions of one video.

    Args:
        segments: float [n, 2], seconds.
        scores: float [n].
        labels: int [n], the classes; they matter only with `per_class`.
    """
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")[: settings.before]
    segments, scores, labels = segments[order], scores[order], np.asarray(labels)[order]
    parts = [labels == label for label in np.unique(labels)] if settings.per_class else []
    rows, kept, values = [], [], []
    for part in parts or [np.ones(len(scores), dtype=bool)]:
        chosen, found = soft_nms(
            segments[part],
            scores[part],
            sigma=settings.sigma,
            min_score=settings.min_score,
            keep=settings.keep,
        )
        final = segments[part][chosen]
        if settings.voting and len(final):
            final = voted(final, segments[part], scores[part], settings.voting)
        rows.append(np.flatnonzero(part)[chosen])
        kept.append(final)
        values.append(found)
    all_scores = np.concatenate(values)
    best = np.argsort(-all_scores, kind="stable")[: settings.keep]
    return KeptSegments(
        np.concatenate(kept)[best], all_scores[best], labels[np.concatenate(rows)][best]
    )
