"""Reads what DeepSpeed pickles without executing anything, and asks who may have written it.

A pickle is a program. DeepSpeed's checkpoint files are read by torch's restricted unpickler, which
builds tensors, plain values and the few classes below; anything else is refused before it is
imported.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import torch

from svilm_fast.train.errors import CheckpointError


def load_restricted(path: str | Path, map_location: Any = None) -> Any:
    """Load a file that DeepSpeed saved; raise CheckpointError where it asks for another class."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([fragment_address, LossScaler, ZeroStageEnum]):
        return load_tensors_only(path, map_location=map_location)


def load_tensors_only(path: str | Path, **options: Any) -> Any:
    """`torch.load` of tensors and plain values; raise CheckpointError for anything else."""
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # a damaged pickle fails in any way
        told = re.search(r"WeightsUnpickler error: (.*?)(?: Please use|$)", str(error), re.M)
        reason = told[1] if told else " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} does not hold what a checkpoint holds, and nothing in it was executed "
            f"({reason:.200}); take another checkpoint"
        ) from error


def use_restricted_unpickler(engine: Any) -> None:
    """Let a DeepSpeed engine load its checkpoints with `load_restricted`."""
    engine.checkpoint_engine.load = lambda path, map_location=None: load_restricted(
        path, map_location
    )


def check_owner(folder: Path, *, trust: bool) -> None:
    """Raise CheckpointError for files that another user may have written, unless `trust` is given.

    That is: a file or folder that belongs neither to this user nor to root, or that everybody may
    write to.
    """
    if trust:
        return
    mine = {os.geteuid(), 0}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            status = path.stat()
        everybody = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid in mine and not everybody:
            continue
        why = "everybody may write to it" if everybody else f"user {status.st_uid} owns it"
        raise CheckpointError(
            f"{path} may have been written by somebody else ({why}); copy the run to a folder of "
            "your "
            "own, or resume with --trust if you know who wrote it"
        )
