"""Errors with messages for users."""

from __future__ import annotations

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_RANK_LOST = 4
EXIT_EVALUATION = 5
EXIT_COLLAPSE = 6


class UserError(Exception):
    """An error whose one-line message says what is wrong, what is expected and how to fix it."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(UserError):
    """The configuration is not valid."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to something else."""


class EvaluationError(UserError):
    """An evaluation during training failed; the training up to then is saved."""

    exit_code = EXIT_EVALUATION


class NonFiniteError(UserError):
    """Loss or gradients were not finite too many times in a row."""

    exit_code = EXIT_NON_FINITE


class CollapseError(UserError):
    """The features of a self-supervised training have collapsed, and the settings end the run."""

    exit_code = EXIT_COLLAPSE


class RankError(UserError):
    """Another rank failed, exited or stopped responding; every rank raises the same message.

    exit_code: that of the failed rank, or 4 if it is not known.
    """

    def __init__(self, message: str, exit_code: int = EXIT_RANK_LOST) -> None:
        super().__init__(message)
        self.exit_code = exit_code
