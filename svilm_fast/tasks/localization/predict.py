"""From a head's proposals to scored, labelled segments in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.formats.activitynet import AnnotatedVideo, PredictedSegment, known_video
from svilm_fast.data.formats.cuhk import VideoClassScores
from svilm_fast.evaluation.class_fusion import fuse_classes
from svilm_fast.evaluation.embed import evaluation_mode
from svilm_fast.evaluation.localization import LocalizationResult
from svilm_fast.evaluation.soft_nms import KeptSegments, thinned_out
from svilm_fast.tasks.localization.sequences import SequenceBatch
from svilm_fast.tasks.localization.settings import LocalizationSettings

ANY = "action"  # label of a proposal without a classifier
Videos = dict[str, list[PredictedSegment]]


class Evaluated(NamedTuple):
    """Predictions of every video that has features, and their result.

    annotated: the videos of the subset. labelled: whether predictions have their labels.
    """

    predictions: Videos
    result: LocalizationResult
    annotated: Mapping[str, AnnotatedVideo]
    labelled: bool


def check_classes(scores: VideoClassScores, annotated: Sequence[str]) -> None:
    """Raise UserError if a classifier lacks a class of the annotations."""
    missing = [label for label in annotated if label not in scores.classes]
    if missing:
        raise UserError(
            f"{scores.name}: has no class {missing[0]!r}, which the annotations have "
            f"({len(missing)} of {len(annotated)} are missing): give a classifier of these classes"
        )


@torch.no_grad()
def predicted_segments(
    model: Any,
    batch: SequenceBatch,
    settings: LocalizationSettings,
    classes: Sequence[str],
    scores: VideoClassScores | None,
    device: torch.device,
) -> list[list[PredictedSegment]]:
    """The predictions of each video of a batch.

    classes: of the head, with `labels: own`. scores: of the video-level classifier, with `labels:
    external`; None: all predictions are labelled "action". Segments are cut to the video.

    Raises UserError for a video that the classifier has no scores of.
    """
    with evaluation_mode(model):
        found = model.head.proposals(batch.features.to(device), batch.mask.to(device))
    result = []
    for place, proposals in enumerate(found):
        kept = (proposals.scores >= settings.min_score).cpu()
        seconds = batch.axes[place].seconds(proposals.segments.double().cpu().numpy())
        length = batch.durations[place]
        seconds = np.clip(seconds, 0.0, np.inf if length is None else length)
        kept = kept.numpy() & (seconds[:, 1] > seconds[:, 0])
        names, final = _labelled(
            thinned_out(
                seconds[kept],
                proposals.scores.double().cpu().numpy()[kept],
                proposals.labels.cpu().numpy()[kept],
                settings.nms,
            ),
            settings,
            classes,
            None if scores is None else (scores, batch.ids[place]),
        )
        result.append(
            [
                PredictedSegment(float(s), float(e), names[label], float(score))
                for (s, e), score, label in zip(final.segments, final.scores, final.labels)
            ]
        )
    return result


def _labelled(
    found: KeptSegments,
    settings: LocalizationSettings,
    classes: Sequence[str],
    classifier: tuple[VideoClassScores, str] | None,
) -> tuple[Sequence[str], KeptSegments]:
    """Names of the classes, and the segments with their labels and scores.

    The video's classes are given to the segments that soft-NMS has left, as G-TAD and ActionFormer
    do: before it, the labels of one segment would suppress each other.
    """
    if settings.labels == "own":
        return classes, found
    if classifier is None:
        return (ANY,), found
    scores, video = classifier
    fused = fuse_classes(
        found.segments,
        found.scores,
        _scores_of(scores, video),
        top=settings.top_classes,
        rule=settings.fusion,
    )
    order = np.argsort(-fused.scores, kind="stable")
    return scores.classes, KeptSegments(*(part[order] for part in fused))


def _scores_of(scores: VideoClassScores, video: str) -> np.ndarray:
    name = known_video(video, scores.scores)
    if name is None:
        raise UserError(f"{scores.name}: has no scores of video {video!r}")
    return scores.scores[name]
