"""Room on the disk: asked for before a save, and told where a save ran out of it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from svilm_fast.train.errors import UserError

# Of the free bytes that a save leaves, for what else writes to this disk meanwhile.
RESERVE_BYTES = 16 << 20


class DiskFullError(UserError):
    """A save ran out of room; what was saved before is intact."""


class NoRoomError(DiskFullError):
    """There is too little room for a save that has not begun; all ranks raise it alike."""


def bytes_in(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError where the file system of `folder` has too little room for `needed`
    bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise NoRoomError(_text(folder, needed, free, what))


def explained(error: BaseException, folder: Path, needed: int, what: str) -> DiskFullError | None:
    """Return the DiskFullError that a failed save amounts to, or None where it is something
    else."""
    free = shutil.disk_usage(folder).free
    named = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if named or "No space left" in str(error) or free < RESERVE_BYTES:
        return DiskFullError(_text(folder, needed, free, what))
    return None


def _text(folder: Path, needed: int, free: int, what: str) -> str:
    return (
        f"no room for {what}: it needs about {needed:,} bytes, {free:,} are free in {folder}; "
        "earlier "
        "checkpoints are intact. Free some space and run again with --resume, lower "
        "checkpoint.keep, or "
        "choose a run.dir on another disk"
    )
