"""Log records of other packages go to a file, so that the console shows what concerns the run.

Records of `svilm_fast` go to the console as before. Those of other packages, Python warnings among
them, go to a file from level INFO on; errors go to the console as well. How many warnings the file
holds is said at the end, and a run that fails before it has a file shows them on the console.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from svilm_fast.core.terminal import print, printable
from svilm_fast.core.text import counted

OWN = "svilm_fast"
FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST_HELD = 1000  # records before there is a file; of what comes after, only warnings are kept

log = logging.getLogger(__name__)


def is_own(record: logging.LogRecord) -> bool:
    """Whether a record comes from this package, or from a program that is started as one of it."""
    return record.name == "__main__" or record.name.split(".")[0] == OWN


class ThirdPartyLog(logging.Handler):
    """Holds the records of other packages until there is a file, then writes them there."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORM))
        self.path: Path | None = None
        self.warned = 0
        self._held: list[logging.LogRecord] = []
        self._file: TextIO | None = None
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        if is_own(record) or self._failed:
            return
        self.warned += record.levelno == logging.WARNING
        if self._file is not None:
            self._write(record)
        elif len(self._held) < MOST_HELD or record.levelno >= logging.WARNING:
            self._held.append(record)

    def open(self, path: Path) -> None:
        """Write to the end of a file from here on, what was held before first."""
        if self._file is not None:
            return
        self.path = path
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._give_up(error)
        for record in self._held:
            self._write(record)
        self._held.clear()

    def close(self) -> None:
        """Say how many warnings the file holds, or what was held where there was no file."""
        super().close()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._failed:
            return
        if self.path is not None and self.warned:
            what = counted(self.warned, "warning")
            print(f"other packages logged {what}: see {self.path}", flush=True)
        for record in self._held:
            if record.levelno == logging.WARNING:
                log.warning("%s: %s", record.name, record.getMessage().strip())

    def _write(self, record: logging.LogRecord) -> None:
        if self._file is None:
            return
        try:
            self._file.write(printable(self.format(record)) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk costs log lines, not the training."""
        self._failed, self._file = True, None
        log.warning("the log of other packages cannot be written, and the run continues: %s", error)


class _Console(logging.Filter):
    """Lets through what is our own, and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return is_own(record) or record.levelno >= logging.ERROR


_current: list[ThirdPartyLog] = []  # empty outside of the block and on ranks other than 0


@contextmanager
def third_party_log() -> Iterator[None]:
    """Keep the records of other packages off the console for the time of the block.

    Rank 0 holds them for `write_third_party`; the other ranks show errors alone.
    """
    with ExitStack() as undo:
        root, console = logging.getLogger(), _Console()
        for handler in list(root.handlers):
            handler.addFilter(console)
            undo.callback(handler.removeFilter, console)
        if os.environ.get("RANK", "0") == "0":
            kept = ThirdPartyLog()
            _current.append(kept)
            root.addHandler(kept)
            undo.callback(_let_go, kept)
        if "TORCH_LOGS" not in os.environ:
            for logger in _loggers():
                if logger.name.split(".")[0] == "torch" and not logger.propagate:
                    for handler in logger.handlers:
                        undo.callback(handler.setLevel, handler.level)
                    redirect(logger, logging.ERROR)
        logging.captureWarnings(True)
        undo.callback(logging.captureWarnings, False)
        yield


def redirect(logger: logging.Logger, level: int) -> None:
    """Leave the logger's own handlers only records from `level` on; keep all from INFO on.

    For loggers that do not propagate. A handler that the root logger has too is not its own.
    """
    for handler in logger.handlers:
        if handler not in logging.getLogger().handlers and not isinstance(handler, ThirdPartyLog):
            handler.setLevel(level)
    for kept in _current:
        logger.addHandler(kept)  # a second time it changes nothing


def write_third_party(path: Path) -> None:
    """Write what is held, and what follows, to the end of a file; without a log, do nothing."""
    for kept in _current:
        kept.open(path)


def is_kept() -> bool:
    """Whether this process keeps the records of other packages."""
    return bool(_current)


def _let_go(kept: ThirdPartyLog) -> None:
    _current.remove(kept)
    for logger in (logging.getLogger(), *_loggers()):
        logger.removeHandler(kept)
    kept.close()


def _loggers() -> list[logging.Logger]:
    every = list(logging.root.manager.loggerDict.values())
    return [logger for logger in every if isinstance(logger, logging.Logger)]
