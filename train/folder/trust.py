"""Reads the files of a checkpoint without executing code, and checks who may have written them.

A pickle is a program. torch's restricted unpickler reads DeepSpeed's checkpoint files: it builds
tensors, plain values and the few classes below, and refuses anything else before importing it.
Checksums detect damage but not an attack, because whoever can write to a folder can also write its
manifest. Unexpected content of a verified file is therefore a CheckpointError too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.messages import single_line
from svilm_fast.data.errors import DataError
from svilm_fast.train.ranks.lost_connection import is_lost_connection


@contextmanager
def understood(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError if reading the content of `path` in the block fails.

    A file with a valid checksum can still come from an attacker and hold anything. Errors with
    another cause (a lost rank, too little memory) are raised unchanged.
    """
    try:
        yield
    except (UserError, DataError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged or foreign content can raise anything
        if is_lost_connection(error):
            raise
        found = re.search(r"WeightsUnpickler error: (.*?)(?: Please use|$)", str(error), re.M)
        reason = found[1] if found else f"{type(error).__name__}: {single_line(error, None)}"
        raise CheckpointError(
            f"{path} holds objects that no checkpoint contains, and nothing in it was executed "
            f"({reason:.200}); take another checkpoint"
        ) from error


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises CheckpointError if it is not one."""
    with understood(path):
        return load_file(path, device=device)


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """Yield an open safetensors file. Raises CheckpointError if the block fails to read it."""
    with understood(path), safe_open(path, framework="pt") as tensors:
        yield tensors


def load_restricted(path: str | Path, map_location: Any = None) -> Any:
    """Load a file that DeepSpeed saved. Raises CheckpointError if it holds any other class."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([fragment_address, LossScaler, ZeroStageEnum]):
        return load_tensors_only(path, map_location=map_location)


def load_tensors_only(path: str | Path, **options: Any) -> Any:
    """`torch.load` of tensors and plain values. Raises CheckpointError for anything else."""
    with understood(path):
        return torch.load(path, weights_only=True, **options)


def use_restricted_unpickler(engine: Any) -> None:
    """Make a DeepSpeed engine load its checkpoints with `load_restricted`.

    The engine also stops copying DeepSpeed's conversion scripts next to ZeRO's checkpoints, because
    they unpickle without restriction. `svilm ckpt convert` replaces them.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: load_restricted(
        path, map_location
    )
    engine._copy_recovery_script = lambda folder: None


def check_owner(folder: Path, *, trust: bool) -> None:
    """Raise CheckpointError for files that another user may have written, unless `trust`.

    These are files and folders that neither this user nor root owns, or that everyone can write to.
    """
    if trust:
        return
    mine = {os.geteuid(), 0}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if not path.exists():
                continue  # a broken link
            status = path.stat()
        everybody = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid in mine and not everybody:
            continue
        why = "everyone can write to it" if everybody else f"user {status.st_uid} owns it"
        raise CheckpointError(
            f"{path} may have been written by another user ({why}); copy the run to a folder of "
            "your own, or resume with --trust if you know who wrote it"
        )
