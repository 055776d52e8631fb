"""Python's cycle collector, paused while many objects are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no cycles in the block.

    The collector looks at all objects whenever their number has grown by a quarter. Where a file
    becomes millions of dictionaries, which hold no cycles, that is half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
