"""CPU seconds of the stages of loading a clip, without the time of stages inside them."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from svilm_fast.data import decode, decode_process, display, views
from svilm_fast.data.dataset import ClipDataset

STAGES = ("read", "demux", "find groups", "decode", "RGB", "stack", "crop and resize", "collate")


class Clock:
    """Adds up the CPU time of nested stages; each second counts for the innermost stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The stage lasts as long as the context."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a stage."""

        @wraps(function)
        def call(*arguments: Any, **settings: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **settings)

        return call

    def entered(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        """The maker of a context, whose entry is the stage."""

        @contextlib.contextmanager
        @wraps(make)
        def call(*arguments: Any, **settings: Any) -> Iterator[Any]:
            with contextlib.ExitStack() as stack:
                with self.stage(name):
                    value = stack.enter_context(make(*arguments, **settings))
                yield value

        return call


def stage_seconds(dataset: ClipDataset, clips: int) -> dict[str, float]:
    """CPU seconds per clip of every stage of `dataset.batch`."""
    clock = Clock()
    table: Any = dataset.table
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (table, "read_video", clock.timed("read", table.read_video)),
        (decode, "open_video", clock.entered("demux", decode.open_video)),
        (decode, "Groups", clock.timed("find groups", decode.Groups)),
        (decode_process, "decode_clip", clock.timed("decode", decode_process.decode_clip)),
        (display, "to_rgb", clock.timed("RGB", display.to_rgb)),
        (decode._Collector, "finish", clock.timed("stack", decode._Collector.finish)),
        (views, "cut", clock.timed("crop and resize", views.cut)),
        (dataset, "collate", clock.timed("collate", dataset.collate)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in places:
            stack.enter_context(_replaced(owner, name, replacement))
        dataset.batch(range(clips))
    return {name: clock.seconds[name] / clips for name in STAGES}


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
