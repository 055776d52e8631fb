"""Writes the log records of other packages to a file instead of the console.

Records of `svilm_fast` and of installed packages that extend it stay on the console. Records of all
other packages, Python warnings included, go to a file from level INFO on; errors also go to the
console. At the end the console shows how many warnings the file holds. A run that fails before it
has a file shows these warnings on the console.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from svilm_fast.core.plugins import plugin_packages
from svilm_fast.core.terminal import print, printable
from svilm_fast.core.text import counted

OWN = frozenset({"svilm_fast", "__main__"})
FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST_HELD = 1000  # records kept in memory before the file exists; beyond it, only warnings are kept

log = logging.getLogger(__name__)


def own_packages() -> frozenset[str]:
    """Return the packages whose records belong on the console.

    These are this package, the main program, and the top-level package of every plug-in.
    """
    return OWN | plugin_packages()


class ThirdPartyLog(logging.Handler):
    """Writes the records of packages outside `own` to a file; holds them until there is one."""

    def __init__(self, own: frozenset[str] = OWN) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORM))
        self.own = own
        self.path: Path | None = None
        self.warned = 0
        self._held: list[logging.LogRecord] = []
        self._file: TextIO | None = None
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write or hold one record."""
        if self._failed or _is_from(self.own, record):
            return
        self.warned += record.levelno == logging.WARNING
        if self._file is not None:
            self._write(record)
        elif len(self._held) < MOST_HELD or record.levelno >= logging.WARNING:
            self._held.append(record)

    def open(self, path: Path) -> None:
        """Append to a file from here on, beginning with the records held so far."""
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
        """Print how many warnings the file holds; without a file, show the held warnings."""
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
        """Stop writing: a full disk costs log lines, not the training."""
        self._failed, self._file = True, None
        log.warning("cannot write the log of other packages; the run continues: %s", error)


def _is_from(packages: frozenset[str], record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in packages


_current: list[ThirdPartyLog] = []  # empty outside the context manager and on other ranks than 0


@contextmanager
def third_party_log() -> Iterator[None]:
    """Keep the records of other packages off the console inside the `with` block.

    Rank 0 holds them until `write_third_party` names a file; other ranks only show errors.
    """
    own = own_packages()

    def shown(record: logging.LogRecord) -> bool:
        return _is_from(own, record) or record.levelno >= logging.ERROR

    with ExitStack() as undo:
        root = logging.getLogger()
        for handler in list(root.handlers):
            handler.addFilter(shown)
            undo.callback(handler.removeFilter, shown)
        if os.environ.get("RANK", "0") == "0":
            kept = ThirdPartyLog(own)
            _current.append(kept)
            root.addHandler(kept)
            undo.callback(_detach, kept)
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
    """Limit a logger's own handlers to `level`, and send its records from INFO on to the file.

    For loggers that do not propagate. Handlers shared with the root logger keep their level.
    """
    for handler in logger.handlers:
        if handler not in logging.getLogger().handlers and not isinstance(handler, ThirdPartyLog):
            handler.setLevel(level)
    for kept in _current:
        logger.addHandler(kept)  # adding it twice has no effect


def write_third_party(path: Path) -> None:
    """Append the held and all later records to a file; no effect outside `third_party_log`."""
    for kept in _current:
        kept.open(path)


def is_kept() -> bool:
    """Whether this process holds or writes the records of other packages."""
    return bool(_current)


def _detach(kept: ThirdPartyLog) -> None:
    _current.remove(kept)
    for logger in (logging.getLogger(), *_loggers()):
        logger.removeHandler(kept)
    kept.close()


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logger for logger in known if isinstance(logger, logging.Logger)]
