"""Atomic writes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file, which is flushed to disk and renamed to `path` after the block."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to disk and rename it to `path`."""
    with opened_atomically(path) as file:
        file.write(content)


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_text(content: Any, *, indent: int = 2) -> str:
    """Format JSON for a file; values of other types (paths, dtypes) become text."""
    return json.dumps(content, indent=indent, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json_text(content).encode())
