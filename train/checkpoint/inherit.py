"""Settings that a fine-tuning takes over from the run whose weights it loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint.saved_state import PORTABLE_STATE
from svilm_fast.train.config.load import overlay, parse_override, read_recipe
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunSettings

BLOCKS = ("model", "video", "text")
# How the weights are trained or computed, not what they are: the recipe's own values hold.
OWN = ("attention", "lock", "drop", "mask", "drop_path", "dropout", "checkpoint_activations")


def portable_of(path: Path) -> Path:
    """Return the portable checkpoint that `path` is, or that a run folder holds.

    Raises CheckpointError if there is none.
    """
    if (path / PORTABLE_STATE).is_file():
        return path
    files = RunFiles(path)
    if (files.portable / PORTABLE_STATE).is_file():
        return files.portable
    if files.config.is_file():
        raise CheckpointError(
            f"{path} is a run without a portable checkpoint, which a run writes at its end; make "
            f"one from its last checkpoint: svilm ckpt convert --run {path}"
        )
    raise CheckpointError(
        f"{path} is neither a portable checkpoint (a folder with {PORTABLE_STATE}) nor a run "
        "folder that holds one"
    )


def config_of(portable: Path) -> Path:
    """Return the configuration of the run that wrote a portable checkpoint.

    Raises CheckpointError if neither the checkpoint nor its run folder has it.
    """
    for found in (RunFiles(portable).config, RunFiles(portable.parent).config):
        if found.is_file():
            return found
    raise CheckpointError(
        f"{portable} has no {RunFiles(portable).config.name}, which says what its model is; copy "
        "that of its run into the folder of the checkpoint's run, or train with "
        "`svilm train --weights-from` and a recipe of the same model"
    )


def run_dir_of(recipe: str | None, overrides: Sequence[str]) -> Path:
    """Return `run.dir` of a recipe with overrides, without validating the other settings."""
    values = read_recipe(recipe) if recipe else {}
    for override in overrides:
        if override.lstrip("- ").startswith("run."):
            values = overlay(values, parse_override(override))
    block = values.get("run")
    given = block.get("dir") if isinstance(block, Mapping) else None
    return Path(given if isinstance(given, str) else RunSettings().dir)


def inherited(recipe: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values with those of `run`, the content of a run's config.yaml.

    The run's blocks `model`, `video`, `text` and `data.tokenizer` win, except for the settings OWN;
    its block `objectives` is the base of the recipe's. The tokenizer itself is read from the
    checkpoint, so the path from which the run read it is left out where it may be.
    """
    taken: dict[str, Any] = {}
    for name in BLOCKS:
        block = run.get(name)
        if isinstance(block, Mapping):
            taken[name] = {key: value for key, value in block.items() if key not in OWN}
    data = run.get("data")
    tokenizer = data.get("tokenizer") if isinstance(data, Mapping) else None
    if isinstance(tokenizer, Mapping):
        left_out = {"path"} if tokenizer.get("kind", "bpe") == "bpe" else set()
        kept = {key: value for key, value in tokenizer.items() if key not in left_out}
        taken["data"] = {"tokenizer": kept}
    objectives = run.get("objectives")
    below = {"objectives": objectives} if isinstance(objectives, Mapping) else {}
    return overlay(overlay(below, recipe), taken)
