"""The teacher: a second video encoder whose weights the training sets and no gradient reaches."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from svilm_fast.models.video_encoder import VideoEncoder, VideoOutputs

TEACHER_OUTPUTS = VideoOutputs(groups=False, segments=False, tokens=True)


class Teacher:
    """A whole copy of a video encoder on every rank, in evaluation mode.

    No module, so that it is no part of the model: the optimizer, ZeRO and the checkpoints do not
    see it. Its weights are those of the moving average, which the training shards, saves and
    resumes; `VideoEncoder` starts as the student's copy.
    """

    def __init__(self, student: VideoEncoder) -> None:
        self.encoder = copy.deepcopy(student).requires_grad_(False).eval()

    def follow(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take over weights by the names that they have in the encoder."""
        own = dict(self.encoder.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                own[name].copy_(value)
