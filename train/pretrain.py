"""`deepspeed --module svilm_fast.train.pretrain` and `svilm pretrain`: the task of pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.train import leave, run_command, train, with_options_of

__all__ = ["leave", "main", "pretrain"]


@with_options_of(train, "task")
def pretrain(**options: Any) -> int:
    return train(task=DEFAULT_TASK, **options)


pretrain.__doc__ = train.__doc__


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_command(pretrain, arguments)


if __name__ == "__main__":
    leave(main())
