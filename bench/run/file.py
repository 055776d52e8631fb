"""Result files: whole at every moment, whatever ends the run that writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def check_replaceable(path: Path) -> None:
    """Raise ValueError where a file is there that is no result file and would be overwritten."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{path} is no result file and would be overwritten: give another --out")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a result file in place of the one that is there.

    Raises ValueError where that is none; call `check_replaceable` before what takes long.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_text(json.dumps(value, indent=1) + "\n")  # a device or a pipe
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(value, indent=1) + "\n")
    unfinished.replace(path)
