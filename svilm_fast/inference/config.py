"""The settings in an exported model's config.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from svilm_fast.core.settings import Count, Factor, Settings, Steps
from svilm_fast.data.config import DataConfig, LimitsConfig, NounsConfig
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig

FORMAT: Literal["svilm_fast.pretrained/1"] = "svilm_fast.pretrained/1"
DEFAULT_SHARPNESS = 10.0


class ReadingConfig(Settings):
    """How videos and texts become inputs of the model: the data settings that evaluation reads."""

    frames_by: Literal["time", "index"] = "time"
    short_clip: Literal["repeat", "skip"] = "repeat"
    resize_margin: float = Field(8 / 7, ge=1.0, le=16.0)
    decoder: Literal["auto", "pyav", "torchcodec", "spdl"] = "auto"
    length: Count = Field(32, description="tokens of a text")
    noun_length: Count = Field(16, description="tokens of a prompted noun")
    nouns: NounsConfig = Field(default_factory=NounsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)

    @classmethod
    def of(cls, data: DataConfig) -> ReadingConfig:
        """Take the settings from those of a run."""
        return cls(
            frames_by=data.frames_by,
            short_clip=data.short_clip,
            resize_margin=data.resize_margin,
            decoder=data.decoder,
            length=data.tokenizer.length,
            noun_length=data.tokenizer.noun_length,
            nouns=data.nouns,
            limits=data.limits,
        )


class PretrainedConfig(Settings):
    """Everything besides weights and tokenizer that a model needs to embed and to ground.

    groups: whether the encoder has group tokens, without which it cannot ground nouns.
    sharpness: factor on the similarities of nouns and groups before the softmax (beta).
    step, weights: of the training run.
    """

    format: Literal["svilm_fast.pretrained/1"] = FORMAT
    model: ModelConfig
    video: VideoConfig
    text: TextConfig
    groups: bool = True
    reading: ReadingConfig = Field(default_factory=ReadingConfig)
    sharpness: Factor = DEFAULT_SHARPNESS
    step: Steps = 0
    weights: Literal["raw", "ema"] = "raw"
    versions: dict[str, str] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return self.model_dump(mode="json")
