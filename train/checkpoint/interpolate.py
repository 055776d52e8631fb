"""`svilm ckpt interpolate`: weights between two portable checkpoints (WiSE-FT).

Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv 2109.01903): (1 - alpha) * A +
alpha * B, with A before and B after the fine-tuning.
"""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.checkpoint.portable_files import (
    PortableState,
    check_portable,
    drafts_of,
    read_weights,
    write_portable,
)
from svilm_fast.train.checkpoint.saved_state import PORTABLE_STATE
from svilm_fast.train.config.load import read_yaml
from svilm_fast.train.config.options import Weights
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder.files import read_json, sha256_of
from svilm_fast.train.folder.ownership import claim, mark
from svilm_fast.train.ranks.consistency import flattened

# Settings of these blocks change what the weights compute, except those of training alone.
BLOCKS = ("model", "video", "text")
TRAINING_ONLY = frozenset(
    {
        "preset",
        "initialisation",
        "attention",
        "lock",
        "checkpoint_activations",
        "drop_path",
        "dropout",
        "drop",
        "mask",
    }
)
SHOWN = 3


def interpolate(
    first: Annotated[Path, typer.Argument(metavar="A", help="run or portable checkpoint, alpha 0")],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="run or portable checkpoint, alpha 1")
    ],
    out: Annotated[Path, typer.Option(help="new folder; with several alphas, one in it for each")],
    alpha: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="share of B, repeatable [default: 0.5]")
    ] = None,
    weights: Annotated[
        Weights, typer.Option(help="the raw weights of both, or their moving averages")
    ] = Weights.RAW,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="parameters that stay B's, as in '*.time_position'; repeatable"),
    ] = None,
) -> None:
    """Write checkpoints with weights between those of two, (1 - alpha) * A + alpha * B.

    Each is a folder that evaluation, report and export take as --run; --weights-from takes its
    folder `portable`. Moments of the optimizer are not kept.
    """
    alphas = sorted(set(alpha or [0.5]))
    folders = [_portable_in(path) for path in (first, second)]
    states = [check_portable(folder) for folder in folders]
    tensors = [read_weights(folder, average=weights is Weights.EMA) for folder in folders]
    _check_same_shapes(tensors, folders)
    _check_same_model(folders)
    kept = _matching(keep or [], tensors[1])
    names = [f"alpha_{str(value).removesuffix('.0')}" for value in alphas]
    targets = [out] if len(alphas) == 1 else [out / name for name in names]
    for target in targets:
        if target.is_symlink() or (target.exists() and (target.is_file() or any(target.iterdir()))):
            raise UserError(f"{target} exists and is not empty: give a new --out")
    for value, target in zip(alphas, targets, strict=True):
        weights_between = mixed(tensors[0], tensors[1], value)
        weights_between |= {name: tensors[1][name] for name in kept}
        _write(target, folders[1], weights_between, states[1])
        print(f"wrote {target}: {1 - value:g} x {folders[0]} + {value:g} x {folders[1]}")


def mixed(first: dict[str, Tensor], second: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) * first + alpha * second, exact at 0 and 1; whole numbers are second's."""
    return {
        name: _between(first[name], value, alpha) if value.is_floating_point() else value
        for name, value in second.items()
    }


def _matching(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the names that match a pattern. Raises UserError for one that matches none."""
    found = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    for pattern, matching in found.items():
        if not matching:
            raise UserError(
                f"--keep {pattern!r} matches no parameter; names look like {next(iter(names))}"
            )
    return {name for matching in found.values() for name in matching}


def _between(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    if alpha in (0, 1):
        return second if alpha else first
    return (first.double() * (1 - alpha) + second.double() * alpha).to(second.dtype)


def _portable_in(path: Path) -> Path:
    inside = RunFiles(path).portable
    return inside if (inside / PORTABLE_STATE).is_file() else path


def _check_same_shapes(tensors: Sequence[dict[str, Tensor]], folders: Sequence[Path]) -> None:
    first, second = ({name: list(value.shape) for name, value in t.items()} for t in tensors)
    problems = [
        f"{name} {first.get(name, 'missing')} and {second.get(name, 'missing')}"
        for name in [*first, *(name for name in second if name not in first)]
        if first.get(name) != second.get(name)
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"{folders[0]} and {folders[1]} hold different models: {', '.join(problems[:SHOWN])}"
            f"{more}; interpolate a model with its own fine-tuning"
        )


def _check_same_model(folders: Sequence[Path]) -> None:
    """Raise CheckpointError if settings of the model or the tokenizers differ."""
    trees = []
    for folder in folders:
        file = folder / RunFiles(folder).config.name
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {file.name}: the models cannot be compared")
        tree: dict[str, Any] = read_yaml(file)
        trees.append(flattened({block: tree.get(block, {}) for block in BLOCKS}))
    # A setting that only one file has came with a later version, which writes its default.
    differ = [
        f"{name} {value} and {trees[1][name]}"
        for name, value in trees[0].items()
        if name in trees[1]
        and value != trees[1][name]
        and TRAINING_ONLY.isdisjoint(name.split(".")[1:])
    ]
    if differ:
        raise CheckpointError(
            f"{folders[0]} and {folders[1]} were trained with different models: "
            f"{', '.join(differ[:SHOWN])}"
        )
    # Heads of one shape can mean other classes or answers.
    first, second = (_task_state(folder) for folder in folders)
    names = [name for name in first | second if first.get(name) != second.get(name)]
    if names:
        raise CheckpointError(
            f"{folders[0]} and {folders[1]} were trained on different data: their task.json differ "
            f"in {', '.join(names[:SHOWN])}"
        )
    tokenizers = [folder / RunFiles(folder).tokenizer.name for folder in folders]
    hashes = {sha256_of(file) for file in tokenizers if file.is_file()}
    if len(hashes) > 1:
        raise CheckpointError(f"{folders[0]} and {folders[1]} have different tokenizers")


def _task_state(folder: Path) -> dict[str, Any]:
    file = folder / RunFiles(folder).task.name
    return read_json(file) if file.is_file() else {}


def _write(target: Path, source: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a run's folder with B's configuration, tokenizer and task state and these weights."""
    files = RunFiles(target)
    target.mkdir(parents=True, exist_ok=True)
    mark(files, created=time.strftime("%Y-%m-%d %H:%M:%S %z"))
    copied = (files.config, files.tokenizer, files.task)
    kept = [path for path in copied if (source / path.name).is_file()]
    claim(files, *kept, saves=drafts_of(files.portable))
    for path in kept:
        shutil.copyfile(source / path.name, path)
    described = state | {"ema": None, "updates": 0}
    write_portable(files.portable, PortableState(weights, {}, None, described), kept)
