"""Disk space: checked before a save, and reported if a save runs out of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.messages import single_line

# Free bytes that a save must leave for other programs that write to this disk.
RESERVE_BYTES = 16 << 20


class DiskFullError(UserError):
    """There is not enough disk space for a save; earlier saves are intact.

    All ranks raise it in the save of a checkpoint, so that the run can continue.
    """


def bytes_in(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError if the file system of `folder` has no room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise DiskFullError(_text(folder, needed, free, what))


def is_full(error: BaseException, folder: Path) -> bool:
    """Return whether a write failed because the file system of `folder`, or a quota, is full.

    torch and safetensors raise their own errors, without an error number.
    """
    named = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return named or "os error 28" in str(error) or shutil.disk_usage(folder).free < RESERVE_BYTES


def save_error(error: OSError, folder: Path, needed: int, what: str) -> UserError:
    """Return the user's error for a failed write of `what`."""
    if is_full(error, folder):
        return DiskFullError(_text(folder, needed, shutil.disk_usage(folder).free, what))
    return CheckpointError(f"{what} could not be written: {error}; earlier checkpoints are intact")


@contextmanager
def write_errors() -> Iterator[None]:
    """Convert the errors of torch and safetensors for a failed write to OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(single_line(error, None)) from error


@contextmanager
def late_errors(checkpoint_engine: Any) -> Iterator[None]:
    """Delay errors of DeepSpeed's writes to the end of the block, and raise them as OSError.

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
        f"{folder}; earlier checkpoints are intact. Free some space and continue with --resume, "
        "lower checkpoint.keep, or choose a run.dir on another disk"
    )
