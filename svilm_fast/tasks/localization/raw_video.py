"""Localization in one video that is no part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.data.feature_files import VideoFeatureSequence
from svilm_fast.data.formats.activitynet import PredictedSegment
from svilm_fast.data.formats.cuhk import VideoClassScores
from svilm_fast.tasks.base import Task
from svilm_fast.tasks.localization.classify import prompt_scores, prompts
from svilm_fast.tasks.localization.predict import predicted_segments
from svilm_fast.tasks.localization.sequences import SequenceBatch
from svilm_fast.tasks.localization.settings import LocalizationSettings
from svilm_fast.tasks.localization.time_axis import TimeAxis, padded, resized


def sequence_batch(sequence: VideoFeatureSequence, settings: LocalizationSettings) -> SequenceBatch:
    """A batch of one video without annotations, as the evaluation makes it."""
    if sequence.features.shape[1] != settings.width:
        raise UserError(
            f"the encoder gives {sequence.features.shape[1]} numbers a vector, and the head was "
            f"trained on {settings.width}: give the encoder of its features"
        )
    features = torch.from_numpy(sequence.features)
    axis = TimeAxis.of(sequence.layout, len(features), settings.length if settings.resize else None)
    unit = 2 ** (settings.actionformer.levels - 1)
    steps = settings.length if settings.resize else max(unit, -(-len(features) // unit) * unit)
    if settings.resize:
        features = resized(features, steps)
    return SequenceBatch(
        features=padded(features, steps)[None],
        mask=(torch.arange(steps) < len(features))[None],
        keys=torch.zeros(1, dtype=torch.int64),
        ids=[sequence.video],
        segments=[np.empty((0, 2), np.float32)],
        labels=[np.empty(0, np.int64)],
        axes=[axis],
        durations=[sequence.duration],
    )


def localized(
    task: Task,
    model: Any,
    sequence: VideoFeatureSequence,
    names: Sequence[str] | None,
    embed_texts: Callable[[Sequence[str]], Tensor],
    device: torch.device,
) -> list[PredictedSegment]:
    """The predictions of one video, by falling score.

    names: with `labels: external` the classes, which are compared with the video by prompts; None:
    proposals without labels. With `labels: own` only these classes are returned; None: all.

    Raises UserError for a name that a head with classes of its own does not have.
    """
    settings = task.config.task
    assert isinstance(settings, LocalizationSettings)
    batch = sequence_batch(sequence, settings)
    scores, classes = None, ()
    if settings.labels == "own":
        classes = task.classes  # type: ignore[attr-defined]
        unknown = [name for name in names or () if name not in classes]
        if unknown:
            raise UserError(
                f"the head was not trained on the class {unknown[0]!r}; its classes: "
                f"{', '.join(classes)}"
            )
    elif names:
        row = prompt_scores(sequence.features, embed_texts(prompts(names)), len(names))
        scores = VideoClassScores(tuple(names), {sequence.video: row}, "prompts")
    (found,) = predicted_segments(model, batch, settings, classes, scores, device)
    if settings.labels == "own" and names:
        found = [one for one in found if one.label in names]
    return found
