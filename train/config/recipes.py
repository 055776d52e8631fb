"""Finds and lists the recipes. Imports no settings, so that listing is quick."""

from __future__ import annotations

from pathlib import Path

import svilm_fast
from svilm_fast.core.errors import ConfigError
from svilm_fast.core.messages import suggestion

# `svilm_fast/configs` is a symlink to `configs/` in a checkout and a real folder in a wheel.
PRESETS = Path(svilm_fast.__file__).parent / "configs"
# Tables of recipes, which `svilm ablate` runs.
TABLES = PRESETS / "ablations" / "tables"
FULL_TABLES = PRESETS / "ablations" / "full"
TABLE_PARTS = PRESETS / "ablations" / "parts"  # what several tables share


def preset_names() -> list[str]:
    """Return the names of the packaged recipes, such as `demo` or `ablations/contrast_only`."""
    tables = (TABLES, FULL_TABLES, TABLE_PARTS)
    recipes = (path for path in PRESETS.rglob("*.yaml") if path.parent not in tables)
    return sorted(str(path.relative_to(PRESETS).with_suffix("")) for path in recipes)


def find_config(name: str, named_in: Path | None = None) -> Path:
    """Find a recipe by path, by the name of a packaged one, or by path relative to another recipe.

    named_in: the file whose `base` it is, resolved.

    Raises ConfigError naming the nearest recipe if nothing is found.
    """
    given = Path(name)
    packaged = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
    candidates = [given, PRESETS / packaged, PRESETS / f"{name}.yaml"]
    if named_in is not None:
        beside = named_in.parent
        candidates = [beside / given, beside / f"{name}.yaml", *candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    sought, names = given.stem, preset_names()
    if named_in is not None:  # the base of a file
        sought = str(given.parent / given.stem)
        here = sorted((named_in.parent / given).parent.glob("*.yaml"))
        shared = sorted(TABLE_PARTS.glob("*.yaml"))
        names = [
            *(str(given.parent / path.stem) for path in here if path.resolve() != named_in),
            *names,
            *(str(path.relative_to(PRESETS).with_suffix("")) for path in shared),
        ]
    hint = suggestion(sought, list(dict.fromkeys(names)), label="recipes")
    raise ConfigError(f"no configuration file {name!r}; {hint}")
