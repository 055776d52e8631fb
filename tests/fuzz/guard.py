"""Limits for one fuzzed input: time, memory, and no action outside its own folder."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svilm_fast.data.decode_process import memory_limit

MEMORY_BYTES = 4 << 30
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of https://docs.python.org/3/library/audit_events.html, by their arguments.
_PATHS = {
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip
_NEVER = (
    "socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
    "os.fork", "pickle.find_class", "urllib.Request",
)  # fmt: skip


class Hang(AssertionError):
    """An input took longer than its target allows."""


class Escape(AssertionError):
    """An input made the code write, connect or start something outside its folder."""


class _Watch:
    """The state of the audit hook. Hooks cannot be removed, so this one is switched on and off."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self.installed = False

    def install(self) -> None:
        if not self.installed:
            sys.addaudithook(self._hear)
            self.installed = True

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                self._check(event, path)
        elif event in _PATHS:
            for path in arguments[: _PATHS[event]]:
                self._check(event, path)
        elif event in _NEVER:
            self._refuse(f"{event} {arguments!r:.200}")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:  # an open file
            return
        full = os.path.realpath(os.fsdecode(path))
        allowed = full.startswith(f"{self.folder}{os.sep}") or full in (self.folder, os.devnull)
        if not allowed and "__pycache__" not in full:  # modules that are imported late
            self._refuse(f"{event} {full!r}")

    def _refuse(self, what: str) -> None:
        self.seen.append(what)
        raise Escape(what)


_watch = _Watch()


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise `Escape` if Python code acted outside `folder`, even if it caught the exception."""
    _watch.install()
    _watch.folder, _watch.seen = os.path.realpath(folder), []
    try:
        yield
    finally:
        _watch.folder = None
    if _watch.seen:
        raise Escape(_watch.seen[0])


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` after `seconds`, even if the code caught the signal's exception."""

    def ring(number: int, frame: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # of the test's own limit
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining:
            left = remaining - (time.monotonic() - start)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
    if time.monotonic() - start > seconds:
        raise Hang(f"more than {seconds} s")


__all__ = ["MEMORY_BYTES", "Escape", "Hang", "memory_limit", "time_limit", "watched"]
