"""The base of every settings class: unknown keys are errors that name the nearest key."""

from __future__ import annotations

import difflib
import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

# A path as a person writes it: a leading `~` is the home folder.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]


class Settings(BaseModel):
    """A typed block of the configuration tree; rejects keys that it does not know."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, frozen=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = list(cls.model_fields)
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise ValueError(f"unknown key {key!r}: {hint}")
        return values
