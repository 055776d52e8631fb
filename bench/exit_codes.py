"""The exit codes of `svilm bench ...` and of the gates built on it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a benchmark command found; only `OK` lets a change pass."""

    OK = 0
    REGRESSION = 1
    USAGE = 2
    INCOMPARABLE = 3
    """Records of machines or versions that cannot be compared."""
    MISSING = 4
    """An id of one side is not there on the other."""
    FAILED = 5
    """A benchmark gave no figure: it crashed, ran out of memory or computed something wrong."""
    NOISY = 6
    """The measurement cannot tell."""
