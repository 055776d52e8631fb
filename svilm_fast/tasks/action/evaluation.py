"""Recognition on a split: views of every video, on one rank or many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.views import Views
from svilm_fast.tasks.action.classes import (
    ClassNames,
    check_labels,
    labels_in,
    refused_labels,
)
from svilm_fast.tasks.action.result import RecognitionResult, recognition_result
from svilm_fast.tasks.action.settings import ActionSettings
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig
from svilm_fast.tasks.clips import autocast_dtype
from svilm_fast.tasks.split import RankPart, SplitEvaluator, read_videos

Encode = Callable[[Tensor], Tensor]
WHOLE = RankPart()


def views_of(settings: ActionSettings) -> Views:
    """Return the views of a video in evaluation."""
    return Views(clips=settings.clips, crops=settings.crops, spread=settings.spread)


def views_text(dataset: ClipDataset) -> str:
    """Return `8 frames x 5 clips x 3 crops`, and how the clips share the frames."""
    views = dataset.views
    text = f"{dataset.frames} frames x {views.clips} clips x {views.crops} crops"
    return f"{text}, {views.spread}" if views.clips > 1 else text


@torch.no_grad()
def encode_views(
    model: Any,
    dataset: ClipDataset,
    encode: Encode,
    device: torch.device,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    mean: bool = False,
    part: RankPart = WHOLE,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Call `encode` on every view of a rank's videos.

    encode: frames uint8 [b, F, H, W, 3] on `device` to [b, ...]. Returns an array float32 [V, ...]
    for every video that was decoded, and the reasons of the others. mean: over the views, [...].
    """
    views = dataset.views.count

    def encoded(frames: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return encode(frames.to(device)).float().cpu()

    def call(batch: ClipBatch) -> list[np.ndarray]:
        frames = batch.frames if views > 1 else batch.frames[:, None]
        of_views = torch.stack([encoded(frames[:, view]) for view in range(views)], dim=1)
        # 15 views of 700 classes would not fit into memory for a large set.
        return list((of_views.mean(dim=1) if mean else of_views).numpy())

    def idle(black: Tensor) -> None:
        for _ in range(views):
            encoded(black)

    return read_videos(model, dataset, batch_size, part, call, idle)


def labels_of_split(
    config: TaskConfig, dataset: ClipDataset, field: str, *, whole: bool
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return the labels of all videos that count, and why some were refused.

    whole: videos that were refused when the split was listed count too; a label that only the
    damaged sample itself could tell is None.
    """
    sources = getattr(config.data, dataset.split)
    labels: dict[str, str | None] = dict(
        zip(dataset.ids, labels_in(dataset.table, field, sources), strict=True)
    )
    refused = {skip.sample: skip.message for skip in dataset.table.rejected} if whole else {}
    known = refused_labels(sources, refused, field)
    return labels | {video: known.get(video) for video in refused}, refused


@dataclass(frozen=True)
class ActionEvaluator(SplitEvaluator):
    """Classifies the videos of a split."""

    name: ClassVar[str] = "action"
    settings: ActionSettings
    classes: ClassNames
    training_videos: int

    @property
    def views(self) -> Views:
        return views_of(self.settings)

    @cached_property
    def dataset(self) -> ClipDataset:
        """The clips of the split, whose labels are checked before any of them is read."""
        data = super().dataset
        labels, _ = self._labels(data)
        sources = getattr(self.config.data, self.split)
        check_labels(labels, self.classes, sources, self.split, self.settings.label_field)
        return data

    def _labels(self, data: ClipDataset) -> tuple[dict[str, str | None], dict[str, str]]:
        field = self.settings.label_field
        return labels_of_split(self.config, data, field, whole=self.max_clips is None)

    def run(self, model: Any, request: EvaluationRequest) -> RecognitionResult:
        """Classify the videos; in training every rank takes a part of them."""
        data = self.dataset

        def read(part: RankPart) -> tuple[dict[str, np.ndarray], dict[str, str]]:
            return encode_views(
                model,
                data,
                lambda frames: model.logits(frames).softmax(-1),
                request.device,
                batch_size=self.config.evaluation.batch_size,
                autocast=autocast_dtype(self.config),
                mean=True,
                part=part,
            )

        found, reasons = self.on_all_ranks(request, read)
        labels, refused = self._labels(data)
        return recognition_result(
            self.name,
            self.classes,
            labels,
            found,
            reasons | refused,
            {
                "split": self.split_text,
                "label_field": self.settings.label_field,
                "classes_from": f"{self.training_videos} training videos",
                "views": views_text(data),
                "scores": "softmax outputs, averaged over the views",
                "features": self.settings.features,
            },
            with_videos=not request.in_training,
        )
