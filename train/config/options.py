"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="dotted settings that win over the recipe"),
]
ConfigName = Annotated[
    str | None, typer.Option("--config", "-c", help="recipe: a YAML file or a packaged name")
]
