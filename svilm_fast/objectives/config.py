"""Settings of the three losses, and of the whole trainable model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from svilm_fast.core.settings import Count, Factor, Settings, Size, Weight
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig, with_preset

VideoSource = Literal["clean", "blended"]
Similarity = Literal["softmax", "max", "mean", "maxsim", "linear", "mlp"]

WEIGHT = "factor on this loss in the sum; 0 removes the loss and its cost"
VIDEO = "the clips that are read: as they are (clean), or after cut-and-paste (blended)"


class ScaleConfig(Settings):
    """A factor on similarities, exp(parameter) clamped in forward."""

    initial: Factor = Field(1 / 0.07, description="factor at the start")
    minimum: Factor = Field(1.0, description="a learned factor is not below it")
    maximum: Factor = Field(100.0, description="a learned factor is not above it")
    learnable: bool = Field(True, description="false: the factor stays as it starts")

    @model_validator(mode="after")
    def _ordered(self) -> ScaleConfig:
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                f"scale needs minimum <= initial <= maximum, got {self.minimum}, "
                f"{self.initial}, {self.maximum}"
            )
        return self


class ContrastConfig(Settings):
    """Global contrast of videos with captions."""

    weight: Weight = Field(1.0, description=WEIGHT)
    video: VideoSource = Field("blended", description=VIDEO)
    exclude_partner: bool = Field(
        False, description="the caption of the clip that gave the background is no negative"
    )
    scale: ScaleConfig = Field(default_factory=ScaleConfig)

    @model_validator(mode="after")
    def _partners_exist(self) -> ContrastConfig:
        if self.exclude_partner and self.video == "clean":
            raise ValueError("exclude_partner needs video=blended: a clean clip has no partner")
        return self


class BetaConfig(Settings):
    """Sharpness of the softmax over groups, clamped to [0, 60] in forward."""

    # docs/decisions/0002-grounding-beta.md: 3 learns as well as any, 10 and above get stuck.
    initial: float = Field(
        3.0, ge=0.0, le=60.0, description="beta at the start, for similarity=softmax"
    )
    learnable: bool = Field(True, description="false: beta stays as it starts")


class GroundingConfig(Settings):
    """Contrast of the groups of a video with the nouns of a caption."""

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


class TemporalConfig(Settings):
    """Foreground against background segments of a blended clip."""

    weight: Weight = Field(1.0, description=WEIGHT)
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


class ObjectivesConfig(Settings):
    """Weights and switches of the losses; a weight of 0 removes the cost of its objective."""

    contrast: ContrastConfig = Field(default_factory=ContrastConfig)
    grounding: GroundingConfig = Field(default_factory=GroundingConfig)
    temporal: TemporalConfig = Field(default_factory=TemporalConfig)
    workspace_bytes: Count | Literal["auto"] | None = Field(
        None,
        description="bound of a loss's temporary memory; null: the op's own; auto: by svilm plan",
    )
    # docs/decisions/0003-loss-products.md: fp32 costs below 3 % of a step up to some 10^5 pairs.
    products: Literal["fp32", "autocast"] = Field(
        "fp32", description="autocast rounds embeddings to its dtype for the losses over all pairs"
    )

    @model_validator(mode="after")
    def _something_to_train(self) -> ObjectivesConfig:
        if not (self.contrast.weight or self.grounding.weight or self.temporal.weight):
            raise ValueError("all objective weights are 0: set at least one above 0")
        return self

    def sources(self) -> set[VideoSource]:
        """Which videos (clean, blended) the active objectives read."""
        blocks = (self.contrast, self.grounding, self.temporal)
        return {block.video for block in blocks if block.weight > 0}


class SViLMConfig(Settings):
    """The blocks that `build_model` reads; a run's configuration holds the same four."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    video: VideoConfig = Field(default_factory=VideoConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    objectives: ObjectivesConfig = Field(default_factory=ObjectivesConfig)

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values
