"""Opening local and remote files by path, without commands hidden in paths."""

from __future__ import annotations

import glob
import os
import re
from typing import BinaryIO

import fsspec

from svilm_fast.data.errors import DataError, MissingFileError

# A list in a shard path may come from a stranger: protocols that run commands are not among these.
REMOTE_PROTOCOLS = ("s3", "gs", "gcs", "hf", "http", "https", "az", "abfs", "memory")


def protocol(path: str) -> str | None:
    """The protocol of a remote path, None for a local one; DataError for one not allowed."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", path)
    if match is None:
        return None
    name = match.group(1).lower()
    if name == "file":
        raise DataError(f"{path!r}: write local files as plain paths, without file://")
    if name not in REMOTE_PROTOCOLS or f"{match.group(1)}://" != path[: len(name) + 3]:
        allowed = ", ".join(REMOTE_PROTOCOLS)
        raise DataError(f"{path!r}: the protocol {name!r} is not allowed; allowed: {allowed}")
    return name


def open_binary(path: str, *, read_ahead: bool = True) -> BinaryIO:
    """Open a local or remote file for reading.

    `read_ahead` False fetches no more of a remote file than what is read, for random access.
    Raises MissingFileError when it is not there, DataError when it cannot be opened.
    """
    try:
        if protocol(path) is None:
            return open(path, "rb")
        filesystem, inside = fsspec.core.url_to_fs(path)
        return filesystem.open(inside, "rb", **({} if read_ahead else {"cache_type": "none"}))
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"{path!r} does not exist or is a folder") from None
    except ImportError as error:
        raise DataError(f"{path!r} needs another package: {error}") from None
    except OSError as error:
        raise DataError(f"{path!r} cannot be opened: {error.strerror or error}") from None


def size_of(path: str) -> int:
    """Bytes of a local or remote file."""
    with open_binary(path) as stream:
        return stream.seek(0, os.SEEK_END)


def read_bytes(path: str, limit: int) -> bytes:
    """A whole file, at most `limit` bytes of it allowed."""
    with open_binary(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path!r} is larger than the {limit} bytes allowed")
    return data


def exists(path: str) -> bool:
    if protocol(path) is None:
        return os.path.exists(path)
    filesystem, inside = fsspec.core.url_to_fs(path)
    return bool(filesystem.exists(inside))


def tree(folder: str) -> list[str]:
    """Every file in `folder` and below it, relative to it, sorted; hidden ones are left out.

    Links to folders are not followed.
    """
    if protocol(folder) is None:
        found = [
            os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
            for place, _, names in os.walk(folder)
            for name in names
        ]
    else:
        filesystem, inside = fsspec.core.url_to_fs(folder)
        start = len(inside.rstrip("/")) + 1
        found = [path[start:] for path in filesystem.find(inside)]
    return sorted(path for path in found if not f"/{path}".count("/."))


def find(path: str, suffix: str) -> list[str]:
    """The files that `path` means: a folder's files ending in `suffix`, a glob, or one file."""
    if protocol(path) is None:
        if os.path.isdir(path):
            return sorted(glob.glob(os.path.join(glob.escape(path), f"*{suffix}")))
        return sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    filesystem, inside = fsspec.core.url_to_fs(path)
    if filesystem.isdir(inside):
        pattern = f"{inside.rstrip('/')}/*{suffix}"
    elif glob.has_magic(inside):
        pattern = inside
    else:
        return [path]
    return sorted(filesystem.unstrip_protocol(name) for name in filesystem.glob(pattern))
