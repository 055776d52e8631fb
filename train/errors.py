"""Errors whose message is written for the person at the terminal."""

from __future__ import annotations

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3


class UserError(Exception):
    """A one-line message that says what was wrong, what was expected and how to mend it."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(UserError):
    """The configuration is not valid."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to something else."""


class NonFiniteError(UserError):
    """Loss or gradients were not finite too many times in a row."""

    exit_code = EXIT_NON_FINITE
