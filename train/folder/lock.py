"""A lock that allows one process at a time to write into a run folder.

It is an advisory lock on an open file, which the system releases when the process ends, even
after a crash.
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
    """Lock the folder of a finished run. Raises UserError if another process holds the lock."""
    lock = FolderLock(folder)
    lock.acquire()
    lock.keep()
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Return whether another process holds the lock of a folder; creates nothing."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(handle)
    return False


class FolderLock:
    """An exclusive lock on a run folder, which `acquire` creates if it does not exist.

    Unless `keep` was called, `release` removes the lock file and the folders that `acquire`
    created, and restores an older lock file: a run that cannot start changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LOCK_FILE
        self._handle: int | None = None
        self._created: list[Path] = []
        self._kept = False
        self._before = b""  # content of the lock file of a crashed run

    def acquire(self) -> None:
        """Take the lock. Raises UserError naming the process that holds it."""
        self._create_folder()
        existed = self.path.exists()
        try:
            while not self._try():
                # The holder removed the file or its folder between our open and our lock.
                self._create_folder()
        except BaseException:
            self._remove_created()
            raise
        if not existed:
            self._created.append(self.path)

    def keep(self) -> None:
        """Keep the folder and the lock file after `release`."""
        self._kept = True

    def release(self) -> None:
        """Release the lock."""
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
                f"{self.path} cannot be opened ({error.strerror}); choose a run.dir that you can "
                "write to"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise UserError(
                f"{self.folder} is in use by {holder}; wait until that run has ended, stop it, or "
                "choose another run.dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(handle)
                raise
            log.warning(
                "%s: the file system has no locks, so nothing prevents a second run in this folder",
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
            with contextlib.suppress(OSError):  # another process uses the folder now
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
