"""Settings of the two encoders, and the size presets."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from svilm_fast.core.nested import merge
from svilm_fast.core.settings import Factor, Layers, Settings, Size

PresetName = Literal["tiny", "small", "base", "large"]
AttentionName = Literal["auto", "sdpa", "flash_attn", "xformers", "reference"]
Initialisation = Literal["fixed", "scaled"]
Lock = bool | int
DropPattern = Literal[
    "random", "spatial_uniform", "temporal_uniform", "stratified", "tube", "motion", "cluster"
]

WIDTH = "width C of a token"
DEPTH = "transformer layers"
HEADS = "attention heads of a layer"
MLP_RATIO = "hidden width of a layer's MLP / C"
DROP_PATH = "rate at the last layer, linear from 0"
DROPOUT = "residual dropout"
ACTIVATION = "activation of the layers' MLPs; OpenAI's CLIP was trained with quick_gelu"
NORM_EPS = "epsilon of the tower's layer norms"

Activation = Literal["gelu", "quick_gelu"]


class DropConfig(Settings):
    """Token dropping before the encoder."""

    rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of the video tokens left out")
    rate_max: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="every clip draws its own rate from [rate, rate_max]; null: all have rate",
    )
    pattern: DropPattern = Field("random", description="how the dropped tokens are spread")

    @model_validator(mode="after")
    def _ordered(self) -> DropConfig:
        if self.rate_max is not None and self.rate_max < self.rate:
            raise ValueError(f"rate_max={self.rate_max} must not be below rate={self.rate}")
        return self


class MaskConfig(Settings):
    """Masking: some of the kept video tokens show a learned vector instead of their pixels."""

    rate: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the kept video tokens that are masked"
    )


@dataclass(frozen=True)
class CropView:
    """Sizes of further small views of a training clip, all alike (multi-crop).

    Attributes:
        count: views of a clip.
        frames: of a view.
        image_size: side of its square frames, pixels.
        scale: smallest and largest window, as shares of the frame's area.
        drop_rate: share of a view's tokens that is dropped, with `video.drop.pattern`.
        masked: whether `video.mask` holds for them.
    """

    count: int
    frames: int
    image_size: int
    scale: tuple[float, float]
    drop_rate: float
    masked: bool


class GroupingConfig(Settings):
    """Group tokens and the blocks that assign video tokens to them."""

    layers: tuple[int, ...] | None = Field(
        None,
        description="a grouping block follows each of these layers, counted from 1; "
        "null: after a half, three quarters and all of the depth",
    )
    mode: Literal["gumbel", "hard", "soft"] = Field(
        "gumbel", description="assignment in training; evaluation is without noise"
    )
    temperature: Factor = Field(1.0, description="divides the logits of the assignment to groups")
    mixer_ratio: float = Field(
        0.5, gt=0.0, le=64.0, description="hidden width of the token mixing MLP / C"
    )
    in_encoder: Literal["when_needed", "always"] = Field(
        "when_needed",
        description="when_needed: without the grounding loss the encoder runs without group "
        "tokens; always: they stay in the joint attention",
    )


class VideoConfig(Settings):
    """The video encoder and the clip that it reads."""

    frames: Size = Field(32, description="frames of a clip")
    image_size: Size = Field(224, description="side of the square frames, pixels")
    tubelet: Size = Field(2, description="frames in one token")
    patch: Size = Field(16, description="pixels along each side of a token")
    width: Size = Field(768, description=WIDTH)
    depth: Layers = Field(12, description=DEPTH)
    heads: Size = Field(12, description=HEADS)
    mlp_ratio: float = Field(4.0, gt=0.0, le=64.0, description=MLP_RATIO)
    num_groups: int = Field(
        32, ge=0, le=65_536, description="group tokens; 0: none, and no grouping blocks"
    )
    num_segments: Size = Field(8, description="temporal segments of a clip")
    unit_groups: bool = Field(True, description="scale group embeddings to length 1")
    unit_segments: bool = Field(True, description="scale segment embeddings to length 1")
    pool: Literal["tokens", "groups", "class_token"] = Field(
        "tokens",
        description="what the video's embedding is made of: the mean of its tokens or of its "
        "groups, or a class token",
    )
    class_tokens: Size = Field(
        1,
        description="with pool=class_token: class tokens of a clip, whose mean is pooled; as many "
        "as temporal positions keep an image model's embedding of a still clip",
    )
    activation: Activation = Field("gelu", description=ACTIVATION)
    norm_eps: Factor = Field(1e-5, description=NORM_EPS)
    pre_norm: bool = Field(False, description="a layer norm before the first layer, as in CLIP")
    pixels: Literal["imagenet", "clip", "half"] = Field(
        "imagenet",
        description="mean and standard deviation that pixels are normalised with; half: 0.5",
    )
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, description=DROP_PATH)
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description=DROPOUT)
    drop: DropConfig = Field(default_factory=DropConfig)
    mask: MaskConfig = Field(default_factory=MaskConfig)
    grouping: GroupingConfig = Field(default_factory=GroupingConfig)
    checkpoint_activations: bool | Literal["auto"] = Field(
        False, description="recompute blocks in backward; auto: if memory requires it (svilm plan)"
    )
    lock: Lock = Field(
        False,
        description="frozen parameters: true freezes the whole tower, a number all but "
        "its head and so many last layers",
    )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Token positions along time, height and width."""
        side = self.image_size // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def num_tokens(self) -> int:
        """Video tokens of a clip before any is dropped."""
        time, height, width = self.grid
        return time * height * width

    def cropped(self, view: CropView) -> VideoConfig:
        """Return the same encoder for the small views `view`; see `CropView`."""
        sizes = {
            "frames": view.frames,
            "image_size": view.image_size,
            "num_segments": 1,
            "drop": self.drop.model_copy(update={"rate": view.drop_rate, "rate_max": None}),
            "mask": self.mask if view.masked else MaskConfig(),
        }
        return self.model_copy(update=sizes)

    @property
    def extra_tokens(self) -> int:
        """Class tokens of a clip."""
        return self.class_tokens if self.pool == "class_token" else 0

    @property
    def grouping_layers(self) -> tuple[int, ...]:
        """Layers (counted from 1) that a grouping block follows; empty without group tokens."""
        if self.num_groups == 0:
            return ()
        if self.grouping.layers is not None:
            return self.grouping.layers
        scaled = {self.depth // 2, 3 * self.depth // 4, self.depth}
        return tuple(sorted(scaled - {0}))

    @model_validator(mode="after")
    def _fits(self) -> VideoConfig:
        _check_heads("video", self.width, self.heads)
        _check_lock("video", self.lock, self.depth)
        if self.frames % self.tubelet:
            raise ValueError(
                f"video.frames={self.frames} must be a multiple of video.tubelet={self.tubelet}"
            )
        if self.image_size % self.patch:
            raise ValueError(
                f"video.image_size={self.image_size} must be a multiple of video.patch={self.patch}"
            )
        if self.grid[0] % self.num_segments:
            raise ValueError(
                f"video.num_segments={self.num_segments} must divide the {self.grid[0]} temporal "
                "positions (video.frames / video.tubelet)"
            )
        if self.class_tokens > 1 and self.pool != "class_token":
            raise ValueError(f"video.class_tokens={self.class_tokens} needs video.pool=class_token")
        if self.pool == "groups" and self.num_groups == 0:
            raise ValueError("video.pool=groups needs video.num_groups above 0")
        layers = self.grouping.layers
        if layers is not None and (
            not layers
            or list(layers) != sorted(set(layers))
            or layers[0] < 1
            or layers[-1] > self.depth
        ):
            raise ValueError(
                f"video.grouping.layers={list(layers)} must be rising layer numbers "
                f"between 1 and video.depth={self.depth}"
            )
        return self


class TextConfig(Settings):
    """The text encoder; reads captions and prompted nouns."""

    vocab_size: int = Field(30522, ge=1, le=2**24, description="rows of the token embedding")
    length: Size = Field(32, description="longest token sequence")
    width: Size = Field(768, description=WIDTH)
    depth: Layers = Field(12, description=DEPTH)
    heads: Size = Field(12, description=HEADS)
    mlp_ratio: float = Field(4.0, gt=0.0, le=64.0, description=MLP_RATIO)
    pool: Literal["start", "mean", "end"] = Field(
        "start",
        description="the first token of the sequence, the mean of the real tokens, or the last "
        "real token",
    )
    activation: Activation = Field("gelu", description=ACTIVATION)
    norm_eps: Factor = Field(1e-5, description=NORM_EPS)
    causal: bool = Field(False, description="a token attends to no later one, as in CLIP")
    post_norm: bool = Field(
        False, description="layer norms after each branch and none at the end, as in BERT"
    )
    embedding_norm: bool = Field(
        False, description="a layer norm over the token embeddings, as in BERT"
    )
    unit_nouns: bool = Field(True, description="scale noun embeddings to length 1")
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, description=DROP_PATH)
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description=DROPOUT)
    checkpoint_activations: bool | Literal["auto"] = Field(
        False, description="recompute blocks in backward; auto: if memory requires it (svilm plan)"
    )
    lock: Lock = Field(
        False,
        description="frozen parameters: true freezes the whole tower, a number all but "
        "its head and so many last layers",
    )

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        _check_heads("text", self.width, self.heads)
        _check_lock("text", self.lock, self.depth)
        if self.causal and self.pool == "start":
            raise ValueError(
                "text.causal=true lets the first token see no other: set text.pool to end or mean"
            )
        return self


class ModelConfig(Settings):
    """What both encoders share."""

    preset: PresetName = Field("base", description="sizes that the other blocks start from")
    embed_dim: Size = Field(256, description="width D of the shared space")
    initialisation: Initialisation = Field(
        "fixed",
        description="initial weights of both towers. fixed: standard deviation 0.02, for widths "
        "from about 768 on; scaled: by the width of a map's input, with sine positions, for narrow "
        "towers, which learn shapes and motion much sooner with it",
    )
    attention: AttentionName = Field(
        "auto", description="implementation of attention; auto: the best one that runs here"
    )


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "model": {"embed_dim": 128},
        "video": {
            "frames": 8,
            "image_size": 64,
            "tubelet": 2,
            "patch": 16,
            "width": 128,
            "depth": 4,
            "heads": 4,
            "num_groups": 8,
            "num_segments": 4,
        },
        "text": {
            "vocab_size": 1024,
            "length": 32,
            "width": 128,
            "depth": 2,
            "heads": 4,
            "pool": "mean",
        },
    },
    "small": {
        "model": {"embed_dim": 256},
        "video": {"frames": 16, "width": 384, "depth": 12, "heads": 6, "num_groups": 16},
        "text": {"width": 384, "depth": 6, "heads": 6},
    },
    "base": {"model": {}, "video": {"drop_path": 0.1}, "text": {}},
    "large": {
        "model": {"embed_dim": 512},
        "video": {"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.2},
        "text": {},
    },
}


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Puts the preset named by `values["model"]["preset"]` under the given values.

    `values` holds raw configuration blocks (`model`, `video`, `text` and any others); what it sets
    wins over the preset. Returns a new dictionary. Raises ValueError on an unknown preset.
    """
    model = values.get("model")
    if isinstance(model, ModelConfig):
        name = model.preset
    else:
        name = model.get("preset", "base") if isinstance(model, Mapping) else "base"
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown model.preset {name!r}: choose one of {', '.join(PRESETS)}")
    return merge(copy.deepcopy(PRESETS[name]), values)


def _check_heads(block: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{block}.width={width} must be a multiple of {block}.heads={heads}")


def _check_lock(block: str, lock: Lock, depth: int) -> None:
    if isinstance(lock, bool) or 0 <= lock <= depth:
        return
    raise ValueError(
        f"{block}.lock={lock} must be the number of last layers that are trained, 0 to "
        f"{block}.depth={depth}; true locks the whole tower, false none of it"
    )
