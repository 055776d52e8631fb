"""Why a benchmark has no figure."""

from __future__ import annotations


class WrongResult(Exception):
    """The result differs from the oracle's; `error` is the relative error."""

    def __init__(self, message: str, error: float) -> None:
        super().__init__(message)
        self.error = error


class NoSuchBenchmark(ValueError):
    """A suite that does not exist, or a pattern that no id matches."""


class Skipped(Exception):
    """The benchmark cannot run here because a package or a device is missing; no failure."""
