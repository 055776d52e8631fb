"""Recognition on a split: views of every video, on one rank or many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import build_loader
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.views import Views
from svilm_fast.evaluation.embed import evaluation_mode, gather
from svilm_fast.tasks.action.classes import ClassNames, labels_in, refused_labels
from svilm_fast.tasks.action.result import RecognitionResult, recognition_result
from svilm_fast.tasks.action.settings import ActionSettings
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig, When
from svilm_fast.tasks.clips import autocast_dtype, evaluation_clips

Encode = Callable[[Tensor], Tensor]


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
    rank: int = 0,
    ranks: int = 1,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Call `encode` on every view of a rank's videos.

    encode: frames uint8 [b, F, H, W, 3] on `device` to [b, ...]. Returns an array float32 [V, ...]
    for every video that was decoded, and the reasons of the others. mean: over the views, [...].
    """
    found: dict[str, np.ndarray] = {}
    views = dataset.views.count
    # Under ZeRO-3 all ranks must call the model equally often.
    calls = math.ceil(math.ceil(len(dataset) / ranks) / batch_size)

    def encoded(frames: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return encode(frames.to(device)).float().cpu()

    loader = build_loader(
        dataset.config, dataset, batch_size=batch_size, rank=rank, world_size=ranks
    )
    with loader, evaluation_mode(model):
        for batch in loader:
            frames = batch.frames if views > 1 else batch.frames[:, None]
            of_views = torch.stack([encoded(frames[:, view]) for view in range(views)], dim=1)
            if mean:  # 15 views of 700 classes would not fit into memory for a large set
                of_views = of_views.mean(dim=1)
            found |= dict(zip(batch.ids, of_views.numpy(), strict=True))
            calls -= 1
        shape = (1, dataset.frames, dataset.image_size, dataset.image_size, 3)
        for _ in range(max(0, calls) * views):
            encoded(torch.zeros(shape, dtype=torch.uint8))
    return found, {skip.sample: skip.message for skip in loader.skips.skipped.values()}


def labels_of_split(
    config: TaskConfig, dataset: ClipDataset, field: str, *, whole: bool
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return the labels of all videos that count, and why some were refused.

    whole: videos that were refused when the split was listed count too; a label that only the
    damaged sample itself could tell is None.
    """
    labels: dict[str, str | None] = dict(
        zip(dataset.ids, labels_in(dataset.table, field), strict=True)
    )
    refused = {skip.sample: skip.message for skip in dataset.table.rejected} if whole else {}
    known = refused_labels(getattr(config.data, dataset.split), refused, field)
    return labels | {video: known.get(video) for video in refused}, refused


@dataclass(frozen=True)
class ActionEvaluator:
    """Classifies the videos of a split. The clips are opened on first use."""

    config: TaskConfig
    settings: ActionSettings
    classes: ClassNames
    training_videos: int
    tokenizer: Tokenizer
    split: str
    max_clips: int | None
    name: str = "action"

    @property
    def file_name(self) -> str:
        return f"action_{self.split}"

    @property
    def when(self) -> When:
        return When(self.config.evaluation.every_steps, self.config.evaluation.at_end)

    @cached_property
    def dataset(self) -> ClipDataset:
        return evaluation_clips(
            self.config,
            self.split,
            self.tokenizer,
            nouns=False,
            max_clips=self.max_clips,
            views=views_of(self.settings),
        )

    def run(self, model: Any, request: EvaluationRequest) -> RecognitionResult:
        """Classify the videos; in training every rank takes a part of them."""
        shared = request.in_training and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        data = self.dataset
        mine = encode_views(
            model,
            data,
            lambda frames: model.logits(frames).softmax(-1),
            request.device,
            batch_size=self.config.evaluation.batch_size,
            autocast=autocast_dtype(self.config),
            mean=True,
            rank=rank,
            ranks=ranks,
        )
        found: dict[str, np.ndarray] = {}
        reasons: dict[str, str] = {}
        for scores, why in gather(mine) if shared else [mine]:
            found |= scores
            reasons |= why
        field = self.settings.label_field
        labels, refused = labels_of_split(self.config, data, field, whole=self.max_clips is None)
        return recognition_result(
            self.name,
            self.classes,
            labels,
            found,
            reasons | refused,
            {
                "split": self.split,
                "label_field": field,
                "classes_from": f"{self.training_videos} training videos",
                "views": views_text(data),
                "scores": "softmax outputs, averaged over the views",
                "features": self.settings.features,
            },
            with_videos=not request.in_training,
        )
