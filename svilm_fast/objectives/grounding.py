"""Inter-clip spatial grounding: groups of a video against the nouns of a caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from svilm_fast.core.settings import Settings, Size, Weight
from svilm_fast.kernels.grounding import (
    distributed_grounding_loss,
    initial_parameters,
    similarity_scores,
)
from svilm_fast.objectives.base import (
    KIND,
    VIDEO,
    WEIGHT,
    HasBlocks,
    Metric,
    Objective,
    ObjectiveConfig,
    Products,
    VideoSource,
    operand,
)
from svilm_fast.objectives.cost import (
    FP32,
    Cost,
    Sent,
    Shapes,
    gathered_bytes,
    gathered_rows,
    pairwise_flops,
)
from svilm_fast.objectives.features import Feature, Features, Reads, required
from svilm_fast.objectives.scale import Scalar, Scale, ScaleConfig

Similarity = Literal["softmax", "max", "mean", "maxsim", "linear", "mlp"]
# Default workspace of the op, fused and elsewhere: kernels/grounding.
WORKSPACE = {True: 256 << 20, False: 64 << 20}


class BetaConfig(Settings):
    """Sharpness of the softmax over groups, clamped to [0, 60] in forward."""

    # docs/decisions/0002-grounding-beta.md: none learns better than 3; 10 and above get stuck.
    initial: float = Field(
        3.0, ge=0.0, le=60.0, description="beta at the start, for similarity=softmax"
    )
    learnable: bool = Field(True, description="false: beta stays as it starts")


class GroundingConfig(ObjectiveConfig):
    """Contrast of the groups of a video with the nouns of a caption."""

    kind: Literal["grounding"] = Field("grounding", description=KIND)
    weight: Weight = Field(1.0, description=WEIGHT + "; with 0 training reads no nouns either")
    video: VideoSource = Field("blended", description=VIDEO)
    similarity: Similarity = Field(
        "softmax",
        description="how a noun's products with all groups become one number; linear and mlp learn "
        "it from the sorted products",
    )
    beta: BetaConfig = Field(default_factory=BetaConfig)
    scale: ScaleConfig = Field(default_factory=ScaleConfig)
    mlp_hidden: Size = Field(64, description="hidden width of similarity=mlp")

    def reads(self) -> Reads:
        return Reads.of(self.video, "groups", nouns=True)

    def build(self, name: str, blocks: HasBlocks) -> Objective:
        objectives = blocks.objectives
        return GroundingObjective(
            self,
            blocks.video.num_groups,
            objectives.workspace,
            unit=blocks.video.unit_groups and blocks.text.unit_nouns,
            products=objectives.products,
            name=name,
        )

    def check(self, name: str, blocks: HasBlocks) -> None:
        """Refuse a model without group tokens."""
        if blocks.video.num_groups == 0:
            raise ValueError(
                f"the {name} objective needs group tokens: set video.num_groups above 0, or "
                f"objectives.{name}.weight=0"
            )

    def without_blending(self, name: str) -> str | None:
        """The same objective can read clean clips instead."""
        return f"objectives.{name}.video=clean" if self.video == "blended" else None

    def cost(self, shapes: Shapes) -> Cost:
        """Dot products of all nouns with all groups, recomputed in backward.

        Kept are the scores [b, B] and what their symmetric InfoNCE makes of them. Over ranks, and
        where clips of one source are masked (a mask more): the
        scores, their slices before they are joined, the logits and a temporary in fp32, and a mask.
        One rank: the fused op makes two matrices, the reference six and a mask. Other similarities
        and vectors of any length take the reference on a GPU too.
        """
        pairs, local = shapes.global_batch, shapes.local_batch
        nouns, groups = shapes.nouns, shapes.groups
        fused = shapes.on_gpu and shapes.unit and self.similarity == "softmax"
        flops = pairwise_flops(shapes, pairs * nouns, pairs * groups)
        if shapes.world_size > 1 or shapes.masked_sources:
            of_a_score = 4 * FP32 + 1 + shapes.masked_sources
        else:
            of_a_score = 2 * FP32 if fused else 6 * FP32 + 1
        bound = shapes.workspace_bytes or WORKSPACE[fused]
        width = nouns * shapes.embed_dim
        masks = [Sent("noun masks", "all_gather", float(pairs * nouns), 1)]
        if shapes.masked_sources:
            masks.append(Sent("pair ids", "all_gather", 8.0 * pairs, 1))
        return Cost(
            flops,
            recomputed=flops.forward,
            kept=local * pairs * of_a_score + gathered_bytes(shapes, width),
            workspace=float(min(bound, 4 * FP32 * local * pairs * groups * nouns)),
            sent=gathered_rows(shapes, "nouns", width, *masks),
        )

    def metrics(self, name: str) -> dict[str, Metric]:
        short = "g.scale" if name == self.kind else f"{name} scale"
        return {
            f"scale_{name}": Metric(short, "Scales", name),
            f"beta_{name}": Metric("", "Scales", "beta" if name == self.kind else f"{name} beta"),
        }

    def noun_sharpness(self, name: str, logged: Mapping[str, float]) -> float:
        """Return the last logged beta, or its initial value."""
        return logged.get(f"beta_{name}", self.beta.initial)

    def picture_note(self, name: str, feature: Feature) -> str | None:
        """Explain that a similarity without a softmax has no picture of its own."""
        if feature != "groups" or self.similarity == "softmax":
            return None
        return (
            f"This run was trained with objectives.{name}.similarity={self.similarity}, which has "
            "no softmax over the groups: the bars are drawn with the sharpness that its softmax "
            "form would start from."
        )

    def facts(self, name: str) -> dict[str, str]:
        return super().facts(name) | {"similarity": f"{name} similarity"}


class SimilarityScores(nn.Module):
    """A similarity other than softmax, with its learned tensors if it has any."""

    def __init__(self, config: GroundingConfig, num_groups: int) -> None:
        super().__init__()
        self.similarity = config.similarity
        initial = initial_parameters(config.similarity, num_groups, config.mlp_hidden)
        self.shapes = {name: value.shape for name, value in initial.items()}
        for name, value in initial.items():
            # DeepSpeed cannot broadcast 0-dim parameters.
            self.register_parameter(name, nn.Parameter(torch.atleast_1d(value)))

    def forward(self, groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor) -> Tensor:
        """Scores [b, c] of groups [b, G, D] with nouns [c, K, D]."""
        parameters = {
            name: getattr(self, name).reshape(shape) for name, shape in self.shapes.items()
        }
        return similarity_scores(self.similarity, groups, nouns, noun_mask, beta, parameters)


class GroundingObjective(Objective):
    """Symmetric InfoNCE over noun-to-group similarities; owns its scale and its sharpness beta."""

    def __init__(
        self,
        config: GroundingConfig,
        num_groups: int,
        workspace_bytes: int | None = None,
        *,
        unit: bool = True,
        products: Products = "fp32",
        name: str | None = None,
    ) -> None:
        """unit: whether groups and nouns have length 1, without which the kernels may overflow."""
        super().__init__(config, name)
        self.backend = None if unit else "reference"
        self.config = config
        self.workspace_bytes = workspace_bytes
        self.products = products
        self.scale = Scale(config.scale)
        learnable = config.beta.learnable and config.similarity == "softmax"
        self.beta = Scalar(config.beta.initial) if learnable else None
        self.scores = None
        if config.similarity != "softmax":
            self.scores = SimilarityScores(config, num_groups)

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE over the batch of all ranks; collective."""
        loss, scale, beta = self.loss(
            operand(features.read(self.config.video, "groups"), self.products),
            operand(required(features.nouns, "nouns"), self.products),
            required(features.noun_mask, "noun_mask"),
            features.source_ids,
        )
        return loss, {f"scale_{self.name}": scale, f"beta_{self.name}": beta}

    def loss(
        self,
        groups: Tensor,
        nouns: Tensor,
        noun_mask: Tensor,
        source_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, detached scale and detached beta, all 0-dim.

        Args:
            groups: [b, G, D], unit norm unless told otherwise.
            nouns: [b, K, D], likewise.
            noun_mask: bool [b, K]; a caption without nouns takes no part.
            source_ids: int64 [b]; pairs of other samples with equal ids are no negatives.
        """
        scale = self.scale(groups)
        beta = self.beta() if self.beta is not None else self._fixed_beta(scale)
        loss = distributed_grounding_loss(
            groups,
            nouns,
            noun_mask,
            beta,
            scale,
            scores=self.scores,
            pair_ids=source_ids,
            workspace_bytes=self.workspace_bytes,
            backend=self.backend,
        )
        return loss, scale.detach(), beta.detach()

    def _fixed_beta(self, like: Tensor) -> Tensor:
        return torch.full((), self.config.beta.initial, dtype=like.dtype, device=like.device)
