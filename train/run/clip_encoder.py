"""The encoders of a finished run, for clips that another module has cut and for class names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.data.feature_files import ClipFeatures
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.train.checkpoint.portable_files import AVERAGE, WEIGHTS
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.embedding import embed_texts
from svilm_fast.train.run.loaded_run import LoadedRun


@dataclass(frozen=True)
class ClipEncoder:
    """The frozen encoders of a run. Raises UserError for a run without a video encoder.

    features: what a clip becomes. embedding: the unit vector of the space shared with text [D];
    pooled: the mean of the tokens before it is projected there [C].
    """

    run: LoadedRun
    features: ClipFeatures = "embedding"

    def __post_init__(self) -> None:
        if not hasattr(self.run.model, "encoder"):
            raise UserError(
                f"{self.run.files.root} is a run of task {self.run.config.task.name!r}, which has "
                "no video encoder: give a run of pre-training"
            )

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Embed uint8 [b, F, size, size, 3] to float [b, D] or [b, C]."""
        encoder: Any = self.run.model.encoder
        device = next(encoder.parameters()).device
        outputs = VideoOutputs(groups=False, segments=False)
        found = encoder.encode_video(clips.to(device), None, outputs)
        vectors: Tensor = found.video if self.features == "embedding" else found.pooled
        return vectors

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed sentences: float32 [n, D], rows of unit norm, on the CPU."""
        return embed_texts(self.run, texts)

    def identity(self) -> dict[str, Any]:
        """Step, kind and SHA-256 of the weights."""
        average = self.run.weights is Weights.EMA
        path = self.run.files.portable / (AVERAGE if average else WEIGHTS)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"step": self.run.step, "weights": self.run.weights.value, "sha256": digest}
