"""Options that several commands share; imports no settings, so that `--help` is quick."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="dotted settings that win over the recipe"),
]
ConfigName = Annotated[
    str | None, typer.Option("--config", "-c", help="recipe: a YAML file or a packaged name")
]


class Weights(StrEnum):
    """The weights of a run that are read: as trained (`raw`), or their moving average (`ema`)."""

    RAW = "raw"
    EMA = "ema"
