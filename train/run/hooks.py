"""Named places in a run at which profilers and fault campaigns are called.

A hook overrides the methods of the places that it needs. Install it before the training starts:

    with installed(MyHook()):
        pretrain.main(arguments)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svilm_fast.train.engine.engine import Engine, StepResult


class Hook:
    """The places of a run, in their order; each method does nothing unless overridden.

    Every rank calls its hooks. An exception ends the run like any other error of this rank. Steps
    count from 1 over the whole run. Time in `before_step` counts as time of the step, but not as
    the rank's own work (`straggler.OwnWork`).
    """

    def before_run(self, engine: Engine) -> None:
        """Model and optimizer hold the state from which the first step starts."""

    def before_step(self, step: int, batch: Any) -> None:
        """The batch of the step is loaded; the hook may change it in place."""

    def after_backward(self, step: int) -> None:
        """The gradients are complete and the optimizer has not run.

        Not called in a step whose loss is not finite.
        """

    def after_step(self, step: int, result: StepResult) -> None:
        """The optimizer has run, or the step was skipped (`result.applied`).

        The moving average of the weights is still that of the step before.
        """

    def before_save(self, step: int, folder: Path) -> None:
        """The disk has room for the checkpoint in `folder`; nothing is written yet.

        It must not raise DiskFullError: the other ranks would wait for this one.
        """

    def during_save(self, step: int, folder: Path) -> None:
        """DeepSpeed's files are written; the run's own files and the manifest are not.

        An OSError from here is handled like a failed write of this rank.
        """

    def after_save(self, step: int, folder: Path) -> None:
        """The checkpoint is complete on all ranks."""

    def after_run(self) -> None:
        """The last step of this process is done; a final checkpoint may still follow.

        Not called when the run ends with an error.
        """


_INSTALLED: list[Hook] = []


@contextmanager
def installed(*hooks: Hook) -> Iterator[None]:
    """Call the hooks in every run that this process trains inside the block."""
    before = list(_INSTALLED)
    _INSTALLED.extend(hooks)
    try:
        yield
    finally:
        _INSTALLED[:] = before


def installed_hooks() -> tuple[Hook, ...]:
    """Return the installed hooks in the order of their installation."""
    return tuple(_INSTALLED)
