"""Printing to a terminal that text from data cannot control.

Everything that the package prints goes through `print` or `log_to_stderr` below, or through the
`Console` of `svilm_fast.core.console`. Control characters (including ANSI escapes), bidirectional
overrides and lone surrogates appear as Python escapes such as `\\x1b`. This module imports only
the standard library, because `make gpu` prints on machines that have nothing else.
"""

from __future__ import annotations

import builtins
import logging
import re
import sys
from typing import TextIO

# Control characters except tab and newline; marks, embeddings, overrides and isolates of the
# bidirectional algorithm (Trojan Source, CVE-2021-42574); line separators; surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, lines: bool = True) -> str:
    """Escape every character that could move the cursor, hide text or reorder it.

    lines: keep newlines; false escapes them too, for a name inside a line.
    """
    text = _UNSAFE.sub(_escaped, text)
    return text if lines else text.replace("\n", "\\n")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def print(
    *values: object,
    sep: str = " ",
    end: str = "\n",
    file: TextIO | None = None,
    flush: bool = False,
) -> None:
    """The built-in `print` with escaped control characters."""
    texts = (printable(str(value)) for value in values)
    builtins.print(*texts, sep=sep, end=end, file=file, flush=flush)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr(level: int, form: str) -> None:
    """Send log records of `level` and above to the error output, in the format `form`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def guard_unconfigured_logging() -> None:
    """Escape the records that `logging` writes to stderr without a configured handler."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter("%(message)s"))


def print_traceback(error: BaseException) -> None:
    """Print a traceback to the error output."""
    import traceback

    print("".join(traceback.format_exception(error)), end="", file=sys.stderr, flush=True)
