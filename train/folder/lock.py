"""One training process per run folder.

The lock is advisory and belongs to an open file, so the system releases it when the process ends,
however it ends. A crash leaves nothing to clean up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from svilm_fast.core.errors import UserError
from svilm_fast.train.config.run_files import LOCK_FILE

log = logging.getLogger(__name__)

LONGEST_RECORD = 1000


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a finished run; raises UserError where another process does."""
    lock = FolderLock(folder)
    lock.acquire()
    lock.keep()
    try:
        yield
    finally:
        lock.release()


class FolderLock:
    """An exclusive lock on a run folder, which is created where it does not exist.

    Until `keep` is called, `release` also removes the lock file and the folders that `acquire`
    created, and leaves a lock file that was there before as it was: a run that is refused changes
    nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LOCK_FILE
        self._handle: int | None = None
        self._created: list[Path] = []
        self._kept = False
        self._before = b""  # what a crashed run left in the lock file

    def acquire(self) -> None:
        """Take the lock, or raise UserError that names the process that holds it."""
        self._create_folder()
        existed = self.path.exists()
        try:
            while not self._try():
                # Between open and lock the holder removed the file, or the folder that it created.
                self._create_folder()
        except BaseException:
            self._remove_created()
            raise
        if not existed:
            self._created.append(self.path)

    def keep(self) -> None:
        """Let the folder and the lock file stay after `release`."""
        self._kept = True

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is None:
            return
        os.ftruncate(self._handle, 0)
        if not self._kept:
            os.pwrite(self._handle, self._before, 0)
            self._remove_created()
        os.close(self._handle)
        self._handle = None

    def _create_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self._created.append(path)
        except OSError as error:
            self._remove_created()
            raise UserError(
                f"run.dir={self.folder} cannot be created ({error.strerror}: {error.filename}); "
                "choose another run.dir"
            ) from error
        if not self.folder.is_dir():
            raise UserError(f"run.dir={self.folder} is a file; choose another run.dir")

    def _try(self) -> bool:
        try:
            handle = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be opened ({error.strerror}); a run needs a folder that it "
                "may "
                "write to: choose another run.dir"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise UserError(
                f"{self.folder} is in use by {holder}; wait until that run has ended, stop it, or "
                "choose "
                "another run.dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(handle)
                raise
            log.warning(
                "%s: the file system has no locks, so a second run in this folder is not refused",
                self.folder,
            )
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == os.fstat(handle).st_ino:
                record = {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                }
                self._before = os.pread(handle, LONGEST_RECORD, 0)
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(record).encode(), 0)
                self._handle = handle
                return True
        os.close(handle)
        return False

    def _remove_created(self) -> None:
        for path in reversed(self._created):
            with contextlib.suppress(OSError):  # somebody else uses the folder by now
                path.rmdir() if path.is_dir() else path.unlink()
        self._created.clear()


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, LONGEST_RECORD, 0))
        return (
            f"process {int(record['pid'])} on {record['host']!s:.80} since {record['since']!s:.40}"
        )
    except (ValueError, KeyError, TypeError):
        return "another process"
