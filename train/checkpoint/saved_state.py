"""Reads the descriptions in a checkpoint: `trainer_state.json` and `state.json`.

Both are untrusted. Content that is not a JSON object of the shapes below raises ValueError, so that
the checkpoint counts as damaged and no reader meets an unexpected type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TRAINER_STATE = "trainer_state.json"
PORTABLE_STATE = "state.json"
MAX_RANKS = 1 << 20

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


class _Saved(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class SavedAverage(_Saved):
    """The average of the weights."""

    updates: Count
    decay: float


class SavedGroup(_Saved):
    """A parameter group of the optimizer."""

    name: str
    parameters: list[str]
    rate_factor: float


class _Described(_Saved):
    step: Count
    optimizer: Literal["adamw", "sgd"]
    parameters: dict[str, list[Count]]
    ema: SavedAverage | None
    copies: list[FileName] = []  # files of the run in the checkpoint; older versions list none


class SavedTrainerState(_Described):
    """`trainer_state.json` of a DeepSpeed checkpoint."""

    world_size: Annotated[int, Field(ge=1, le=MAX_RANKS)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    precision: str
    groups: list[SavedGroup]


class SavedPortableState(_Described):
    """`state.json` of a portable checkpoint."""

    updates: Count
    data: dict[str, Any]


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """Return `trainer_state.json`; raises ValueError if it is missing or damaged."""
    return _read(folder / TRAINER_STATE, SavedTrainerState)


def read_portable_state(folder: Path) -> dict[str, Any]:
    """Return `state.json`; raises ValueError if it is missing or damaged."""
    return _read(folder / PORTABLE_STATE, SavedPortableState)


def read_data_state(path: Path) -> dict[str, Any]:
    """Return the state of a rank's loader; raises ValueError if it is not a JSON object."""
    return _read(path, _Saved)


def _read(path: Path, kind: type[_Saved]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name} is damaged ({place[:60]!r}: {first['msg']})") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path.name} is missing or damaged") from None
    return content
