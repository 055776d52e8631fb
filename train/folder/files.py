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


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError if it is missing, large or not JSON.

    A FIFO or a device is refused, because a read of it might never end.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or not a regular file")
    if path.stat().st_size > LONGEST_JSON:
        raise ValueError(f"{path} is damaged (larger than {LONGEST_JSON >> 20} MiB)")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged (not JSON)") from None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
    """Write a safetensors file with the permissions of the umask. Raises OSError if that fails.

    safetensors itself ignores the umask and makes its files readable by the owner only.
    """
    with write_errors():
        save_file(tensors, path, **options)
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
