"""The embeddings of a batch, and the weighted sum of the losses over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from svilm_fast.models.config import ModelConfig, VideoConfig
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.objectives.contrast import ContrastObjective, retrieval_accuracy
from svilm_fast.objectives.grounding import GroundingObjective
from svilm_fast.objectives.temporal import TemporalObjective


class Embeddings(NamedTuple):
    """What the active objectives read of b samples; the rest is None.

    Attributes:
        videos: [b, D], unit norm.
        texts: [b, D], unit norm.
        groups: [b, G, D], unit norm.
        nouns: [b, K, D], unit norm.
        segments: [b, T, D], unit norm.
        noun_mask: bool [b, K].
        segment_mask: bool [b, T].
        paste_mask: bool [b, T].
        pair_ids: int64 [b].
        empty_groups: fp32 [b], share of a clip's groups without a token; no gradient.
    """

    videos: Tensor | None = None
    texts: Tensor | None = None
    groups: Tensor | None = None
    nouns: Tensor | None = None
    segments: Tensor | None = None
    noun_mask: Tensor | None = None
    segment_mask: Tensor | None = None
    paste_mask: Tensor | None = None
    pair_ids: Tensor | None = None
    empty_groups: Tensor | None = None


class StepOutput(NamedTuple):
    """Loss (0-dim, with graph) and detached 0-dim metrics."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Objectives(nn.Module):
    """The objectives whose weight is above 0; the others do not exist."""

    def __init__(
        self,
        config: ObjectivesConfig,
        model: ModelConfig,
        video: VideoConfig,
        *,
        unit_nouns: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        given = config.workspace_bytes
        workspace = None if given == "auto" else given
        self.contrast = None
        if config.contrast.weight:
            self.contrast = ContrastObjective(config.contrast, workspace)
        self.grounding = None
        if config.grounding.weight:
            if video.num_groups == 0:
                raise ValueError(
                    "the grounding objective needs group tokens: set video.num_groups above 0, "
                    "or objectives.grounding.weight=0"
                )
            unit = video.unit_groups and unit_nouns
            self.grounding = GroundingObjective(
                config.grounding, video.num_groups, workspace, unit=unit
            )
        self.temporal = None
        if config.temporal.weight:
            self.temporal = TemporalObjective(config.temporal, model, video.num_segments)

    def forward(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses and the metrics; collectives run on every rank."""
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for name, weight, part in (
            ("contrast", self.config.contrast.weight, self._contrast),
            ("grounding", self.config.grounding.weight, self._grounding),
            ("temporal", self.config.temporal.weight, self._temporal),
        ):
            if weight:
                loss, extra = part(embeddings)
                terms.append(weight * loss)
                metrics |= {f"loss_{name}": loss.detach()} | extra
        if embeddings.empty_groups is not None:
            metrics["empty_group_rate"] = embeddings.empty_groups.mean()
        return torch.stack(terms).sum(), metrics

    def _factor(self, embeddings: Tensor) -> Tensor:
        """Embeddings as the products over all pairs take them."""
        kind = embeddings.device.type
        if self.config.products == "fp32" or not torch.is_autocast_enabled(kind):
            return embeddings
        return embeddings.to(torch.get_autocast_dtype(kind))

    def _contrast(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.contrast is not None
        videos = self._factor(_given(embeddings.videos, "videos"))
        texts = self._factor(_given(embeddings.texts, "texts"))
        loss, scale = self.contrast(videos, texts, embeddings.pair_ids)
        to_text, to_video = retrieval_accuracy(videos, texts)
        return loss, {
            "scale_contrast": scale,
            "accuracy_v2t": to_text,
            "accuracy_t2v": to_video,
        }

    def _grounding(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.grounding is not None
        loss, scale, beta = self.grounding(
            self._factor(_given(embeddings.groups, "groups")),
            self._factor(_given(embeddings.nouns, "nouns")),
            _given(embeddings.noun_mask, "noun_mask"),
        )
        return loss, {"scale_grounding": scale, "beta_grounding": beta}

    def _temporal(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.temporal is not None
        loss = self.temporal(
            _given(embeddings.segments, "segments"),
            _given(embeddings.segment_mask, "segment_mask"),
            _given(embeddings.paste_mask, "paste_mask"),
        )
        return loss, {}


def _given(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"an active objective reads `{name}` of the embeddings, which is missing")
    return tensor
