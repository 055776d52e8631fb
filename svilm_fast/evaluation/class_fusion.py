"""Fusion of class-agnostic segments with a video-level classifier."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

FusionRule = Literal["product", "sqrt"]


class LabelledSegments(NamedTuple):
    """segments float64 [n, 2]; scores float64 [n]; labels int64 [n] into the classes."""

    segments: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def fuse_classes(
    segments: np.ndarray,
    scores: np.ndarray,
    class_scores: np.ndarray,
    *,
    top: int = 2,
    rule: FusionRule = "sqrt",
) -> LabelledSegments:
    """Give every segment the `top` classes of its video.

    rule: `product` of both scores (G-TAD with top 2), or its square root (`sqrt`: ActionFormer with
    top 1 or 2). Equal class scores are taken in the order of the classes.

    Args:
        segments: float [n, 2].
        scores: float [n].
        class_scores: float [C] of the video.
    """
    best = np.argsort(-class_scores, kind="stable")[:top]
    joint = np.asarray(scores)[:, None] * class_scores[best].clip(min=0)[None, :]
    joint = np.sqrt(joint) if rule == "sqrt" else joint
    return LabelledSegments(
        np.repeat(np.asarray(segments, dtype=np.float64).reshape(-1, 2), len(best), axis=0),
        joint.ravel(),
        np.tile(best, len(scores)),
    )
