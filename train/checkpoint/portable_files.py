"""The files of a portable checkpoint, which any ZeRO stage and number of ranks can read.

safetensors and JSON. A new checkpoint replaces the one before it only when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from svilm_fast.core.errors import CheckpointError
from svilm_fast.core.files import write_json
from svilm_fast.train.checkpoint.saved_state import PORTABLE_STATE, read_portable_state
from svilm_fast.train.folder.disk import check_space, told
from svilm_fast.train.folder.files import save_tensors
from svilm_fast.train.folder.manifest import (
    MANIFEST,
    SAVED,
    damage_of,
    remove_listed,
    write_manifest,
)
from svilm_fast.train.folder.trust import read_tensors

WEIGHTS = "model.safetensors"
MOMENTS = "optimizer.safetensors"
AVERAGE = "ema.safetensors"
MOMENT_NAMES = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


@dataclass
class PortableState:
    """All that a portable checkpoint holds, whole and on the CPU.

    weights: fp32 parameters and persistent buffers by name; moments: fp32 by `moment/name`;
    average: the trained parameters' average, None without one; described: what state.json says.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] | None
    described: dict[str, Any]


def describe_state(
    *,
    step: int,
    optimizer: str,
    updates: int,
    data: dict[str, Any],
    parameters: dict[str, list[int]],
    ema: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of state.json. updates: those that AdamW's bias correction counts."""
    return {
        "format": 1,
        "step": step,
        "optimizer": optimizer,
        "updates": updates,
        "data": data,
        "parameters": parameters,
        "ema": ema,
    }


def write_portable(folder: Path, state: PortableState, copies: Iterable[Path] = ()) -> None:
    """Write the files; the folder appears under its name only when it is complete.

    copies: files that are copied into it, and so are covered by its manifest. Raises DiskFullError
    or CheckpointError where it cannot be written; what was there before is then unchanged.
    """
    temporary, before = folder.with_name(f".{folder.name}.tmp"), _before(folder)
    for path in (folder, temporary, before):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link, which is not followed: remove it")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, but a folder is needed here: move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, what = _bytes_of(state), f"the portable checkpoint {folder}"
    try:
        _finish_replacing(folder)
        if before.exists():
            left = ", ".join(sorted(path.name for path in before.iterdir())[:5])
            raise CheckpointError(f"{before} holds {left}, which no checkpoint save wrote; move it")
        _remove_draft(temporary)
        check_space(folder.parent, needed, what)
        _write(temporary, state, list(copies))
        if folder.exists():
            folder.replace(before)
        temporary.replace(folder)
    except OSError as error:
        failure = told(error, folder.parent, needed, what)
        _remove_draft(temporary)
        raise failure from error
    _finish_replacing(folder)


def _bytes_of(state: PortableState) -> int:
    tensors = [*state.weights.values(), *state.moments.values(), *(state.average or {}).values()]
    return sum(tensor.nbytes for tensor in tensors)


def _write(folder: Path, state: PortableState, copies: list[Path]) -> None:
    folder.mkdir(parents=True)
    save_tensors(state.weights, folder / WEIGHTS)
    save_tensors(state.moments, folder / MOMENTS)
    if state.average is not None:
        save_tensors(state.average, folder / AVERAGE)
    write_json(
        folder / PORTABLE_STATE, state.described | {"copies": [path.name for path in copies]}
    )
    for path in copies:
        shutil.copyfile(path, folder / path.name)
    write_manifest(folder)


def drafts_of(folder: Path) -> list[Path]:
    """The folders that a portable checkpoint of this name may be written to."""
    return [folder, folder.with_name(f".{folder.name}.tmp"), _before(folder)]


def _before(folder: Path) -> Path:
    """Where the older checkpoint waits until the new one has its name."""
    return folder.with_name(f".{folder.name}.before")


def _finish_replacing(folder: Path) -> None:
    """Remove an older checkpoint, or bring it back where a kill left no newer one.

    What somebody added to it moves to the newer one, or stays where that holds the same name.
    """
    before = _before(folder)
    if not before.is_dir():
        return
    if not (folder / MANIFEST).is_file():  # the manifest is written last
        if folder.is_dir():
            folder.rmdir()
        before.replace(folder)
        return
    try:
        remove_listed(before)
    except ValueError:  # the manifest was damaged
        for path in list(before.iterdir()):
            if SAVED.fullmatch(path.name) and not path.is_dir():
                path.unlink()
    for left in list(before.iterdir()) if before.is_dir() else ():
        if not os.path.lexists(folder / left.name):
            left.replace(folder / left.name)
    with contextlib.suppress(OSError):
        before.rmdir()


def _remove_draft(folder: Path) -> None:
    """Remove an unfinished checkpoint. Raises CheckpointError where it holds anything else."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not SAVED.fullmatch(path.name) or path.is_dir():
            raise CheckpointError(
                f"{folder} holds {path.name}, which no checkpoint save wrote; move it"
            )
    shutil.rmtree(folder)


def required_files(folder: Path) -> list[str]:
    """Return the names that a portable checkpoint must hold.

    Raises ValueError where it does not say so.
    """
    described = read_portable_state(folder)
    average = [] if described["ema"] is None else [AVERAGE]
    return [WEIGHTS, MOMENTS, PORTABLE_STATE, *average, *described.get("copies", [])]


def problem_with(folder: Path) -> str | None:
    """Return why a portable checkpoint cannot be trusted, or None if it is as it was written."""
    return damage_of(folder, required=required_files)


def check_portable(folder: Path) -> dict[str, Any]:
    """Return the described state of a verified portable checkpoint, or raise CheckpointError."""
    if not (folder / PORTABLE_STATE).is_file() or not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} holds no portable checkpoint; a run writes it at its end: continue with "
            "--resume, or make one of a stopped run's last checkpoint with `svilm ckpt convert`"
        )
    reason = problem_with(folder)
    if reason is not None:
        raise CheckpointError(f"{folder} does not pass verification: {reason}")
    return read_portable_state(folder)


def read_weights(folder: Path, *, average: bool) -> dict[str, Tensor]:
    weights = read_tensors(folder / WEIGHTS)
    if average:
        if not (folder / AVERAGE).is_file():
            raise CheckpointError(
                f"{folder} holds no average of the weights; take the weights themselves, or train "
                "with ema.decay"
            )
        weights |= read_tensors(folder / AVERAGE)
    return weights
