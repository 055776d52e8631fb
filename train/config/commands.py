"""The commands that look at settings and recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from svilm_fast.core.terminal import print
from svilm_fast.train.config.load import (
    PRESETS,
    dump_config,
    explain,
    load_config,
    preset_names,
)
from svilm_fast.train.train import ConfigName, Overrides

config_app = typer.Typer(no_args_is_help=True, help="Look at settings and recipes.")


@config_app.command("print")
def print_config(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print a recipe with all its bases and overrides resolved."""
    print(dump_config(load_config(config, overrides or [])), end="")


@config_app.command("explain")
def explain_key(
    path: Annotated[str, typer.Argument(help="a dotted key or block; default: everything")] = "",
) -> None:
    """Print type, default and meaning of settings."""
    print(explain(path))


@config_app.command("list")
def list_recipes() -> None:
    """Print the packaged recipes and the first line of each."""
    for name in preset_names():
        first_line = (PRESETS / f"{name}.yaml").read_text().splitlines()[0]
        print(f"{name:32} {first_line.lstrip('# ')}")
