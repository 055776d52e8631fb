"""Room on the disk: asked for before a save, and told where a save ran out of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from svilm_fast.core.errors import CheckpointError, UserError

# Of the free bytes that a save leaves, for what else writes to this disk meanwhile.
RESERVE_BYTES = 16 << 20


class DiskFullError(UserError):
    """There is too little room for a save; what was saved before is intact."""


class NoRoomError(DiskFullError):
    """The same for a checkpoint of a run; all ranks raise it alike, so that the run can go on."""


def bytes_in(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError where the file system of `folder` has too little room for `needed`
    bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise NoRoomError(_text(folder, needed, free, what))


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether a write failed because the file system of `folder`, or a quota on it, is full.

    torch and safetensors raise errors of their own, without an error number.
    """
    named = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return named or "os error 28" in str(error) or shutil.disk_usage(folder).free < RESERVE_BYTES


def told(error: OSError, folder: Path, needed: int, what: str) -> UserError:
    """Return what a failed write of `what` means to the user."""
    if is_full(error, folder):
        return NoRoomError(_text(folder, needed, shutil.disk_usage(folder).free, what))
    return CheckpointError(f"{what} could not be written: {error}; earlier checkpoints are intact")


@contextmanager
def write_errors() -> Iterator[None]:
    """Turn what torch and safetensors raise for a failed write into OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(" ".join(str(error).split())) from error


@contextmanager
def late_errors(checkpoint_engine: Any) -> Iterator[None]:
    """Raise what DeepSpeed fails to write in the block as OSError, but not before its end.

    A rank that raised within DeepSpeed's save would leave the others in a barrier.
    """
    found: list[OSError] = []
    save = checkpoint_engine.save

    def save_or_note(*arguments: Any, **options: Any) -> Any:
        try:
            with write_errors():
                return save(*arguments, **options)
        except OSError as error:
            found.append(error)
            return None

    checkpoint_engine.save = save_or_note
    try:
        yield
    finally:
        checkpoint_engine.save = save
    if found:
        raise found[0]


def _text(folder: Path, needed: int, free: int, what: str) -> str:
    return (
        f"not enough disk space for {what}: it needs about {needed:,} bytes, {free:,} are free in "
        f"{folder}; "
        "earlier checkpoints are intact. Free some space and run again with --resume, lower "
        "checkpoint.keep, or choose a run.dir on another disk"
    )
