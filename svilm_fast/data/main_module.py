"""Starting processes without importing the main program in each of them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()


@contextlib.contextmanager
def main_module_hidden() -> Iterator[None]:
    """Processes of multiprocessing that start inside do not import the main program.

    A trainer as main module would cost every process its imports, and a script without the
    `if __name__ == "__main__"` guard would run again.
    """
    names = ("__spec__", "__file__")
    with _lock:
        main = sys.modules["__main__"]
        hidden: dict[str, Any] = {name: vars(main)[name] for name in names if name in vars(main)}
        main.__spec__ = None
        vars(main).pop("__file__", None)
        try:
            yield
        finally:
            vars(main).update(hidden)
