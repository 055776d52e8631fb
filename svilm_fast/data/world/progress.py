"""Progress of rendering: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from svilm_fast.core.console import Console
from svilm_fast.core.terminal import print

_LINE_SECONDS = 5.0


@contextmanager
def clip_progress(total: int, shown: bool, doing: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more clips are done; `doing`: "rendering", say."""
    console = Console(stderr=True)
    if not shown:
        yield lambda done: None
    elif console.is_terminal:
        columns = (
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("clips"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda done: bar.advance(task, done)
    else:
        yield _Lines(total, doing)


class _Lines:
    """Writes a line when some seconds have passed, and at the end."""

    def __init__(self, total: int, doing: str) -> None:
        self.total, self.doing, self.done = total, doing, 0
        self.started = self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last < _LINE_SECONDS and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(now - self.started, 1e-9)
        print(
            f"{self.doing}: {self.done}/{self.total} clips, {rate:.0f} clips/s",
            file=sys.stderr,
            flush=True,
        )
