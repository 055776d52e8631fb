"""A linear classifier on the video tower."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.core.philox import Site, StepSeeds, uniform
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.precision import at_least_fp32, project
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.action.settings import ActionSettings
from svilm_fast.tasks.base import TaskConfig

# The random stream of the head's dropout, beyond those of the encoders' layers.
DROPOUT_LAYER = 8192
OUTPUTS = VideoOutputs(groups=False, segments=False)


class ActionInputs(NamedTuple):
    """frames: uint8 [b, F, H, W, 3]; labels: int64 [b], classes; seeds: of the step."""

    frames: Tensor
    labels: Tensor
    seeds: StepSeeds


class ActionOutput(NamedTuple):
    """loss: 0-dim; metrics: 0-dim, detached."""

    loss: Tensor
    metrics: dict[str, Tensor]


class ActionClassifier(nn.Module):
    """The towers of pre-training and a linear head; the text tower is kept and not trained."""

    def __init__(self, config: TaskConfig, settings: ActionSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.frozen_video = config.video.lock is True
        groups = config.objectives.reads().uses_groups(config.video)
        self.encoder = DualEncoder(config.model, config.video, config.text, groups=groups)
        pooled = settings.features == "pooled"
        width = config.video.width if pooled else config.model.embed_dim
        # A unit vector's entries are small; without this the logits would start almost equal.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, classes)
        initialise(self.head)
        self.encoder.text.requires_grad_(False)
        if pooled:
            self.encoder.video.projection.requires_grad_(False)
        self._freeze_unread_groups()

    def _freeze_unread_groups(self) -> None:
        """Freeze what only the group embeddings read: nothing here has a gradient."""
        video = self.encoder.video
        if not video.num_groups:
            return
        video.group_projection.requires_grad_(False)
        if video.config.pool != "groups":
            video.group_norm.requires_grad_(False)
            last = str(video.config.depth)
            if last in video.grouping_blocks:
                video.grouping_blocks[last].requires_grad_(False)

    def logits(self, frames: Tensor, seeds: StepSeeds | None = None) -> Tensor:
        """Return [b, classes], at least fp32; without `seeds` nothing is random."""
        of_video = None if self.frozen_video else seeds
        video = self.encoder.encode_video(frames, of_video, OUTPUTS)
        features = video.pooled if self.settings.features == "pooled" else video.video
        features = self.norm(at_least_fp32(features))
        rate = self.settings.dropout
        if seeds is not None and rate > 0:
            channels = torch.arange(features.shape[-1], device=features.device)
            numbers = uniform(seeds.at(Site.DROPOUT, DROPOUT_LAYER), channels)
            features = features * (numbers >= rate).to(features.dtype) / (1 - rate)
        return at_least_fp32(project(self.head, features))

    def forward(self, inputs: ActionInputs) -> ActionOutput:
        """Return the cross-entropy with label smoothing, and the accuracy in the batch."""
        logits = self.logits(inputs.frames, inputs.seeds if self.training else None)
        smoothing = self.settings.label_smoothing
        loss = F.cross_entropy(logits, inputs.labels, label_smoothing=smoothing)
        right = (logits.argmax(1) == inputs.labels).float().mean()
        return ActionOutput(loss, {"accuracy_action": right.detach()})
