"""Writes that either happened completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file through a temporary name, flushed to disk before it gets its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, so that they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_text(content: Any, *, indent: int = 2) -> str:
    """JSON for a file; what JSON does not know (paths, dtypes) is written as text."""
    return json.dumps(content, indent=indent, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json_text(content).encode())
