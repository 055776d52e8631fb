"""Files that a user names for a result: only an earlier result of the same kind is replaced."""

from __future__ import annotations

from pathlib import Path


def check_replaceable(path: Path, *signs: str) -> None:
    """Raise ValueError where a file is there that holds none of `signs`.

    signs: texts of which every result of the kind holds one. An empty file, a device or a pipe may
    be written to.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    content = path.read_bytes()
    if not any(sign.encode() in content for sign in signs):
        raise ValueError(
            f"{path} exists, is not an earlier result of this command and would be overwritten; "
            "give "
            "another name, or remove the file"
        )
