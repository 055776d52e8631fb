"""The base class of all settings, which rejects unknown keys and names the nearest one."""

from __future__ import annotations

import math
import os
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from svilm_fast.core.messages import suggestion

# A leading `~` is the home folder.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]

# The largest integer up to which float64 represents every integer.
LARGEST = 2**53

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
# Sizes of a layer, a clip or a sequence. Larger ones exhaust the memory before any check.
Size = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Clips = Annotated[int, Field(ge=1, le=2**30)]
Steps = Annotated[int, Field(ge=0, le=10**12)]
SomeSteps = Annotated[int, Field(ge=1, le=10**12)]
Factor = Annotated[float, Field(gt=0.0, le=1e6)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Seconds = Annotated[float, Field(gt=0.0, le=604_800.0)]


class Settings(BaseModel):
    """A typed block of the configuration tree.

    Rejects unknown keys, numbers that are not finite or larger than 2**53, true and false in fields
    of other types, and text that is empty or not printable.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, frozen=False, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = cls.known_keys()
        for key, value in values.items():
            if key not in cls.model_fields and cls.block_at(str(key), value) is None:
                hint = suggestion(str(key), known, label="known keys")
                raise ValueError(f"unknown key {key!r}: {hint}")
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads true as 1.
        if isinstance(value, bool) and not cls._takes_truth_values(str(info.field_name)):
            raise ValueError(f"must not be {str(value).lower()}: another type is expected")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        for leaf in _leaves(value):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise ValueError(f"must be a finite number, found {leaf}")
            if isinstance(leaf, int | float) and abs(leaf) > LARGEST:
                raise ValueError(f"must lie between -2**53 and 2**53, found {leaf}")
            if isinstance(leaf, str) and not leaf.strip():
                raise ValueError("must not be empty")
            # Control characters and surrogates can be neither shown nor written.
            if isinstance(leaf, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in leaf):
                raise ValueError(f"must hold printable characters, found {leaf[:40]!r}")
        return value

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys to suggest for an unknown key."""
        return list(cls.model_fields)

    @classmethod
    def block_at(cls, key: str, value: Any) -> type[Settings] | None:
        """The class of the block under a key that is not a field; None if no block is allowed."""
        return None

    @classmethod
    def problem_of(cls, key: str, value: Any) -> str | None:
        """The error message for a key that is neither field nor block; None: the usual one."""
        return None

    @classmethod
    @cache
    def _takes_truth_values(cls, name: str) -> bool:
        return bool in _types(cls.model_fields[name].annotation)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types(part)
