"""The exit codes of `svilm bench ...` and of the gates built on it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The result of a benchmark command; only `OK` lets a change pass."""

    OK = 0
    REGRESSION = 1
    USAGE = 2
    INCOMPARABLE = 3
    """The measurements are of different machines, versions or shapes."""
    MISSING = 4
    """An id exists on one side only, or nothing was measured."""
    FAILED = 5
    """A benchmark gave no figure: it crashed, ran out of memory or gave a wrong result."""
    NOISY = 6
    """The measurement is too noisy to decide."""
