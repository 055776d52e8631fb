"""Protects files from being overwritten by a result, unless they are an earlier result."""

from __future__ import annotations

from pathlib import Path


def check_replaceable(path: Path, *signs: str) -> None:
    """Raise ValueError if `path` is a file that contains none of `signs`.

    signs: texts of which every result of this kind contains one. Empty files, devices and pipes may
    be overwritten.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    content = path.read_bytes()
    if not any(sign.encode() in content for sign in signs):
        raise ValueError(
            f"{path} exists and is not an earlier result of this command: give another name, or "
            "remove the file"
        )
