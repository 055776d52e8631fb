"""`svilm config`: prints settings and recipes."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import ConfigName, Overrides
from svilm_fast.train.config.recipes import PRESETS, preset_names


def print_config(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print a recipe with its bases and overrides resolved."""
    from svilm_fast.train.config.load import dump_config, load_config

    print(dump_config(load_config(config, overrides or [])), end="")


def explain_key(
    path: Annotated[str, typer.Argument(help="a dotted key or block; default: all settings")] = "",
) -> None:
    """Print type, default and meaning of settings."""
    from svilm_fast.train.config.load import explain

    print(explain(path))


def list_recipes() -> None:
    """Print the packaged recipes and the first sentence of each."""
    for name in preset_names():
        print(f"{name:32} {_first_sentence(PRESETS / f'{name}.yaml')}")


def _first_sentence(recipe: Path) -> str:
    """Return the first sentence of a recipe's leading comment."""
    comment = takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines())
    text = " ".join(line.lstrip("# ") for line in comment)
    sentence, _, more = text.partition(". ")
    return f"{sentence}." if more else text
