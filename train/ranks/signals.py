"""Defers signals, so that the run can save a checkpoint after the current step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Slurm sends SIGUSR1 before a time limit (--signal), a closed terminal sends SIGHUP.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Ctrl-C reaches every process of the terminal, and the launchers also forward it to the ranks as
# SIGTERM: a second signal within this time is a copy of the first.
COPIES_WITHIN_SECONDS = 5.0


class PendingSignal:
    """The number of the first signal that arrived, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def deferred_signals(clock: Callable[[], float] = time.monotonic) -> Iterator[PendingSignal]:
    """Record the first handled signal; a second one, if not a copy, has its normal effect.

    A signal that the process ignores, such as SIGHUP under nohup, stays ignored. A handler that was
    not installed from Python cannot be restored, so it is not replaced.
    """
    pending = PendingSignal()
    previous: dict[int, Any] = {
        number: handler
        for number in HANDLED
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    first_at = 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if pending.number == 0:
            pending.number, first_at = number, clock()
        elif clock() - first_at > COPIES_WITHIN_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, remember)
    try:
        yield pending
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)
