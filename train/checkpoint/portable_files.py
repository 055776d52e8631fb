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
from svilm_fast.train.folder.disk import check_space, save_error
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
    """The content of a portable checkpoint, unsharded and on the CPU.

    weights: fp32 parameters and persistent buffers by name. moments: fp32, by `moment/name`.
    average: of the trained parameters, None without one. described: the content of state.json.
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
    """Return the content of state.json. updates: the count for AdamW's bias correction."""
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
    """Write a checkpoint under a temporary name, then rename it to `folder`.

    copies: files to copy into it, which its manifest then covers. Raises DiskFullError or
    CheckpointError if it cannot be written; an earlier checkpoint is then unchanged.
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
        failure = save_error(error, folder.parent, needed, what)
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
    """Return the folders that a save of this portable checkpoint may create."""
    return [folder, folder.with_name(f".{folder.name}.tmp"), _before(folder)]


def _before(folder: Path) -> Path:
    """Return the temporary name of the older checkpoint while the new one takes its name."""
    return folder.with_name(f".{folder.name}.before")


def _finish_replacing(folder: Path) -> None:
    """Remove an older checkpoint, or restore it if the save of the newer one was killed.

    Files that a user added to it move to the newer one, unless it has a file of the same name.
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
    """Remove an unfinished checkpoint. Raises CheckpointError if it holds any other file."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not SAVED.fullmatch(path.name) or path.is_dir():
            raise CheckpointError(
                f"{folder} holds {path.name}, which no checkpoint save wrote; move it"
            )
    shutil.rmtree(folder)


def required_files(folder: Path) -> list[str]:
    """Return the names that a portable checkpoint must hold, from its state.json.

    Raises ValueError if that is damaged.
    """
    described = read_portable_state(folder)
    average = [] if described["ema"] is None else [AVERAGE]
    return [WEIGHTS, MOMENTS, PORTABLE_STATE, *average, *described.get("copies", [])]


def problem_with(folder: Path) -> str | None:
    """Return why a portable checkpoint is invalid, or None if every byte is unchanged."""
    return damage_of(folder, required=required_files)


def check_portable(folder: Path) -> dict[str, Any]:
    """Verify a portable checkpoint and return its state.json; raises CheckpointError."""
    if not (folder / PORTABLE_STATE).is_file() or not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} holds no portable checkpoint; a run writes it at its end: continue with "
            "--resume, or convert the last checkpoint of a stopped run with `svilm ckpt convert`"
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
                f"{folder} holds no average of the weights; use the weights themselves, or train "
                "with ema.decay"
            )
        weights |= read_tensors(folder / AVERAGE)
    return weights
