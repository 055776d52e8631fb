"""Intra-clip temporal grouping: which segments of a blended clip are its own."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from svilm_fast.core.settings import Factor, Size
from svilm_fast.kernels.temporal import temporal_bce
from svilm_fast.models.attention import KeyPadding
from svilm_fast.models.config import ModelConfig
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.precision import project
from svilm_fast.models.transformer import Block, Span
from svilm_fast.models.video_encoder import LearnedTokens
from svilm_fast.objectives.base import KIND, HasBlocks, Objective, ObjectiveConfig
from svilm_fast.objectives.cost import Cost, Shapes
from svilm_fast.objectives.features import Features, Reads, required


class TemporalConfig(ObjectiveConfig):
    """Foreground against background segments of a blended clip.

    No sample sees another, but its features are small: one pass over those of the whole batch costs
    less than running a head twice, with and without graph, so it stays global.
    """

    kind: Literal["temporal"] = Field("temporal", description=KIND)
    video: Literal["blended"] = Field("blended", description="only blended clips have a task")
    head: Literal["centroid", "rnn", "transformer"] = Field(
        "centroid",
        description="what tells own segments from pasted ones: likeness to the centres of both, or "
        "a learned head that reads all segments",
    )
    loss: Literal["bce", "mse"] = Field(
        "bce", description="cross-entropy or squared error of the predicted probabilities"
    )
    temperature: Factor = Field(0.1, description="divides the logits of head=centroid")
    heads: Size = Field(4, description="attention heads of head=transformer")

    def reads(self) -> Reads:
        return Reads.of(self.video, "segments")

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        return TemporalObjective(self, blocks.model, blocks.video.num_segments, name)

    def check(self, name: str, blocks: HasBlocks) -> None:
        """Refuse a number of heads that does not divide the width."""
        width = blocks.model.embed_dim
        if self.head == "transformer" and width % self.heads:
            raise ValueError(
                f"objectives.{name}.heads={self.heads} must divide model.embed_dim={width}"
            )

    def attention_heads(self, blocks: HasBlocks) -> list[int]:
        """The width of an attention head, if attention is used."""
        return [blocks.model.embed_dim // self.heads] if self.head == "transformer" else []

    def segment_temperature(self) -> float:
        return self.temperature

    def cost(self, shapes: Shapes) -> Cost:
        """No cost: T vectors of a clip are negligible next to the encoders."""
        return Cost()

    def facts(self, name: str) -> dict[str, str]:
        words = "weight of temporal grouping" if name == self.kind else f"weight of {name}"
        return {"weight": words, "head": f"{name} head"}


class RecurrentHead(nn.Module):
    """A bidirectional GRU over the segments, then one logit per segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.recurrence = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.logit = nn.Linear(2 * (width // 2), 1)

    def forward(self, segments: Tensor, segment_mask: Tensor) -> Tensor:
        """[b, T] from [b, T, D]; missing segments enter as zeros."""
        present = project(self.norm, segments) * segment_mask[..., None]
        return self.logit(self.recurrence(present)[0]).squeeze(-1)


class TransformerHead(nn.Module):
    """One transformer block over the segments, then one logit per segment."""

    def __init__(self, width: int, heads: int, num_segments: int, attention: str) -> None:
        super().__init__()
        self.position = LearnedTokens(num_segments, width)
        self.norm = nn.LayerNorm(width)
        self.block = Block(width, heads, 4.0, attention)
        self.logit = nn.Linear(width, 1)
        initialise(self)

    def forward(self, segments: Tensor, segment_mask: Tensor) -> Tensor:
        """[b, T] from [b, T, D]; missing segments are not attended to."""
        batch, length, _ = segments.shape
        states = project(self.norm, segments) + self.position(batch)
        ids = torch.arange(length, device=segments.device)
        # The loss excludes a clip without segments, but its softmax must be finite.
        nothing = ~segment_mask.any(dim=1, keepdim=True)
        span = Span(batch, length, ids, KeyPadding(segment_mask | nothing))
        states = self.block(states.flatten(0, 1), (span,))
        return self.logit(states).view(batch, length)


class TemporalObjective(Objective):
    """Classify segments as foreground or background, by two centroids or by a learned head."""

    def __init__(
        self,
        config: TemporalConfig,
        model: ModelConfig,
        num_segments: int,
        name: str | None = None,
    ) -> None:
        super().__init__(config, name)
        self.config = config
        self.head: nn.Module | None = None
        if config.head == "rnn":
            self.head = RecurrentHead(model.embed_dim)
        elif config.head == "transformer":
            self.head = TransformerHead(
                model.embed_dim, config.heads, num_segments, model.attention
            )

    @property
    def segment_head(self) -> nn.Module | None:
        """The learned head, if there is one."""
        return self.head

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the segments with the paste mask."""
        loss = self.loss(
            features.read(self.config.video, "segments"),
            features.read(self.config.video, "segment_mask"),
            required(features.paste_mask, "paste_mask"),
        )
        return loss, {}

    def loss(self, segments: Tensor, segment_mask: Tensor, paste_mask: Tensor) -> Tensor:
        """0-dim loss, fp32 (float64 for float64).

        Args:
            segments: [b, T, D], unit norm.
            segment_mask: bool [b, T], segments with tokens.
            paste_mask: bool [b, T], true for the clip's own segments.
        """
        if self.head is None:
            return temporal_bce(
                segments,
                paste_mask,
                segment_mask=segment_mask,
                temperature=self.config.temperature,
                loss=self.config.loss,
            )
        return masked_segment_loss(
            self.head(segments, segment_mask), paste_mask, segment_mask, self.config.loss
        )


def masked_segment_loss(
    logits: Tensor, paste_mask: Tensor, segment_mask: Tensor, loss: str
) -> Tensor:
    """BCE or squared error of the probabilities, averaged over a clip's segments, then over clips.

    Args:
        logits: [b, T].
        paste_mask: bool [b, T].
        segment_mask: bool [b, T]; other segments take no part.
        loss: bce or mse.

    Returns:
        0-dim; a clip without foreground or without background gives 0, as in `temporal_bce`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = paste_mask.to(logits.dtype)
    if loss == "bce":
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    else:
        error = (logits.sigmoid() - target).square()
    blended = (paste_mask & segment_mask).any(dim=1) & (~paste_mask & segment_mask).any(dim=1)
    counted = segment_mask & blended[:, None]
    per_clip = error.masked_fill(~counted, 0).sum(dim=1) / segment_mask.sum(dim=1).clamp_min(1)
    return per_clip.mean()
