"""Reads and writes of the files in a run folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from svilm_fast.train.folder.disk import write_errors

CHUNK_BYTES = 1 << 20
LONGEST_JSON = 64 << 20


def read_limited(path: Path) -> bytes:
    """Return a small file's content; raise ValueError that names a file which is none.

    A FIFO or a device, whose reading may never end, is none.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or not a regular file")
    if path.stat().st_size > LONGEST_JSON:
        raise ValueError(f"{path} is damaged (larger than {LONGEST_JSON >> 20} MiB)")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Return a small JSON file's content; raise ValueError that names the file where it is none."""
    try:
        return json.loads(read_limited(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path} is damaged (not JSON)") from None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
    """Write a safetensors file with the permissions of any other new file.

    safetensors makes its file readable by its owner alone, whatever the umask. Raises OSError
    where the file cannot be written.
    """
    with write_errors():
        save_file(tensors, path, **options)
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
