"""A signal asks for a checkpoint at the next step instead of ending the process at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT)


class PendingSignal:
    """The number of a signal that arrived, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def deferred_signals() -> Iterator[PendingSignal]:
    """Collect SIGTERM and SIGINT; a second one acts at once, as it would have without us."""
    pending = PendingSignal()
    previous = {number: signal.getsignal(number) for number in HANDLED}

    def remember(number: int, frame: FrameType | None) -> None:
        pending.number = number
        for handled in HANDLED:
            signal.signal(handled, previous[handled])

    for number in HANDLED:
        signal.signal(number, remember)
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
