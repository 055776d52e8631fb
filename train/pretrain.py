"""`deepspeed --module svilm_fast.train.pretrain` and `svilm pretrain`: the task of pre-training."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import wraps
from typing import Any

from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.train import leave, run_command, train

__all__ = ["leave", "main", "pretrain"]


# The command line offers the options of `train` without --task.
_options = inspect.signature(train, eval_str=True)
_options = _options.replace(
    parameters=[option for name, option in _options.parameters.items() if name != "task"]
)


@wraps(train, assigned=("__doc__", "__annotations__"))
def pretrain(*arguments: Any, **options: Any) -> int:
    given = _options.bind(*arguments, **options)
    return train(task=DEFAULT_TASK, **given.arguments)


vars(pretrain)["__signature__"] = _options


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and pre-train; returns the exit code."""
    return run_command(pretrain, arguments)


if __name__ == "__main__":
    leave(main())
