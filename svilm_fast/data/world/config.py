"""Settings of the embedded world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from svilm_fast.core.settings import Fraction, Settings
from svilm_fast.data.world.combinations import Combinations, split_combinations
from svilm_fast.data.world.vocabulary import ACTIONS, BACKGROUNDS, COLORS, SHAPES, STAY


class WorldConfig(Settings):
    """What is rendered: how many clips, how large, and how hard they are to tell apart.

    Two worlds with equal settings are equal pixel by pixel. The default is a world in which six
    colours make few colour sets, so that a model which sees colours alone ranks poorly.
    """

    train: int = Field(3000, ge=0, le=10**7, description="training clips")
    val: int = Field(100, ge=0, le=10**7, description="validation clips, captions distinct")
    test: int = Field(200, ge=0, le=10**7, description="test clips, captions distinct")
    seed: int = Field(
        0, ge=0, lt=2**53, description="draws every clip and the held-out combinations"
    )

    size: int = Field(64, ge=32, le=512, description="side of the square frames, pixels (even)")
    frames: int = Field(16, ge=8, le=512, description="frames per clip")
    fps: float = Field(8.0, gt=0, le=120, description="frames per second")
    quality: int = Field(18, ge=0, le=40, description="H.264 constant rate factor, lower is better")
    shard_size: int = Field(250, ge=1, description="clips per tar file")

    colors: tuple[str, ...] = tuple(COLORS)
    shapes: tuple[str, ...] = SHAPES
    backgrounds: tuple[str, ...] = BACKGROUNDS
    actions: tuple[str, ...] = ACTIONS

    object_counts: tuple[float, ...] = Field(
        (0.5, 0.5), description="weights of clips with one, two, three objects"
    )
    sequences: Fraction = Field(
        0.25, description="share of clips in which actions follow one another"
    )
    object_scale: float = Field(1.0, ge=0.5, le=1.3, description="factor on the objects' size")
    mention_background: bool = Field(True, description="coarse and fused captions name it")
    wording: Literal["plain", "varied"] = Field(
        "plain", description="one phrase per action, or several that mean the same"
    )
    holdout: Literal["object_action", "object"] = Field(
        "object_action",
        description="what training never shows of the test set: objects doing what they do and "
        "which objects meet, or the objects themselves (colour and shape together)",
    )

    @field_validator("size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size % 2:
            raise ValueError(f"must be even for H.264, got {size}: use {size + 1}")
        return size

    @field_validator("colors", "shapes", "backgrounds", "actions")
    @classmethod
    def _known_words(cls, words: tuple[str, ...], info: Any) -> tuple[str, ...]:
        known: Iterable[str] = {
            "colors": COLORS,
            "shapes": SHAPES,
            "backgrounds": BACKGROUNDS,
            "actions": ACTIONS,
        }[info.field_name]
        unknown = [word for word in words if word not in known]
        if unknown:
            raise ValueError(f"unknown {unknown[0]!r}: choose from {', '.join(known)}")
        if len(set(words)) != len(words) or not words:
            raise ValueError("needs at least one word and none twice")
        return words

    @field_validator("object_counts")
    @classmethod
    def _weights(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(weights) <= 3 or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError("needs one to three weights, none negative, their sum positive")
        return weights

    @model_validator(mode="after")
    def _combinations_exist(self) -> WorldConfig:
        if not set(self.actions) - {STAY}:
            raise ValueError(f"actions needs one besides {STAY!r}")
        self.combinations()
        return self

    def combinations(self) -> Combinations:
        """The combinations of each split; raises ValueError where the words are too few."""
        return split_combinations(self.colors, self.shapes, self.actions, self.holdout, self.seed)


def build_config(config: WorldConfig | None = None, **settings: Any) -> WorldConfig:
    """`config` with `settings` on top, a wrong one as a ValueError of one line."""
    values = {**(config.model_dump() if config else {}), **settings}
    try:
        return WorldConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"world settings: {where + ': ' if where else ''}{message}") from None
