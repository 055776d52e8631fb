"""How a benchmark ends without a figure."""

from __future__ import annotations


class WrongResult(Exception):
    """The call does not compute what its oracle does; `error` is the relative error."""

    def __init__(self, message: str, error: float) -> None:
        super().__init__(message)
        self.error = error


class NoSuchBenchmark(ValueError):
    """A suite that does not exist, or a pattern that no id matches."""


class Skipped(Exception):
    """The benchmark cannot run here and nothing is wrong: a package or a device is missing."""
