"""Opening local and remote files by path, without commands hidden in paths."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import fsspec

from svilm_fast.core.messages import single_line
from svilm_fast.data.errors import DataError, MissingFileError

# A list in a shard path may come from a stranger: protocols that run commands are not among these.
# Each with the package that fsspec needs for it.
_PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",
}
REMOTE_PROTOCOLS = tuple(_PACKAGES)
_PIECE_BYTES = 1 << 24


ENDS_BYTES = 1 << 16
# What the stores of fsspec call a checksum or, after those, the time of the last change.
_MARKS = (
    *("ETag", "etag", "md5Hash", "blob_id"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)


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
    if "::" in path:
        raise DataError(
            f"{path!r}: chained addresses (`::`) are not allowed; several addresses are a list"
        )
    return name


def require_regular_file(path: str | os.PathLike[str], mode: int | None = None) -> None:
    """Refuse FIFOs, devices and sockets: opening one may wait for ever or act on the device.

    mode: its `st_mode`, where that is known. Raises DataError; OSError where nothing is there.
    """
    mode = os.stat(path).st_mode if mode is None else mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    raise DataError(f"{str(path)!r} is a {kind}: give a regular file")


def _open_local(path: str) -> BinaryIO:
    require_regular_file(path)
    # O_NONBLOCK: what has become a FIFO since is opened at once, and refused.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        require_regular_file(path, os.fstat(handle).st_mode)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


@contextlib.contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Turn what fsspec and its packages raise while a remote `path` is read into DataErrors."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{path!r} does not exist or is a folder") from None
    except ImportError as error:
        package = _PACKAGES[protocol(path) or "memory"]
        raise DataError(
            f"{path!r} needs another package: pip install {package} ({single_line(error)})"
        ) from None
    except Exception as error:  # every store has errors of its own
        raise DataError(
            f"{path!r} cannot be read: {type(error).__name__}: {single_line(error)}"
        ) from None


def _filesystem(path: str) -> tuple[Any, str]:
    """The file system of a remote path, and the path inside it."""
    protocol(path)
    return fsspec.core.url_to_fs(path)


def open_binary(path: str, *, read_ahead: bool = True) -> BinaryIO:
    """Open a local or remote file for reading.

    `read_ahead` False fetches no more of a remote file than what is read, for random access.
    Raises MissingFileError when it is not there, DataError when it cannot be opened.
    """
    if protocol(path) is not None:
        with remote_errors(path):
            filesystem, inside = _filesystem(path)
            options = {} if read_ahead else {"cache_type": "none"}
            return filesystem.open(inside, "rb", **options)
    try:
        return _open_local(path)
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise MissingFileError(f"{path!r} does not exist or is a folder") from None
    except OSError as error:
        raise DataError(f"{path!r} cannot be opened: {error.strerror or error}") from None
    except ValueError as error:  # a null character, half a surrogate pair
        raise MissingFileError(f"{path!r} is not a path: {single_line(error)}") from None


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """`open_binary` for a block; errors of reading a remote file are DataErrors too."""
    errors = contextlib.nullcontext() if protocol(path) is None else remote_errors(path)
    with errors, open_binary(path) as stream:
        yield stream


def size_of(path: str) -> int:
    """Bytes of a local or remote file."""
    with opened(path) as stream:
        return stream.seek(0, os.SEEK_END)


def ends_checksum(path: str) -> str:
    """Size of a local file and CRC-32 of its first and last 64 KiB."""
    return f"{size_of(path)} {ends_crc(path)}"


def ends_crc(path: str) -> int:
    """CRC-32 of the first and last 64 KiB of a local file."""
    with opened(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        checksum = 0
        for start in (0, max(size - ENDS_BYTES, 0)):
            stream.seek(start)
            checksum = zlib.crc32(stream.read(ENDS_BYTES), checksum)
    return checksum


def read_bytes(path: str, limit: int) -> bytes:
    """A whole file, at most `limit` bytes of it allowed."""
    parts, left = [], limit + 1
    with opened(path) as stream:
        # In pieces: one read would reserve memory for as many bytes as are allowed.
        while left > 0 and (part := stream.read(min(left, _PIECE_BYTES))):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise DataError(f"{path!r} is larger than the {limit} bytes allowed")
    return b"".join(parts)


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a remote file, fetched at the same time where its store can: [start, stop) each."""
    with remote_errors(path):
        filesystem, inside = _filesystem(path)
        starts, stops = ([each[side] for each in ranges] for side in (0, 1))
        return filesystem.cat_ranges([inside] * len(ranges), starts, stops)


def exists(path: str) -> bool:
    if protocol(path) is None:
        return os.path.exists(path)
    with remote_errors(path):
        filesystem, inside = _filesystem(path)
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
        with remote_errors(folder):
            filesystem, inside = _filesystem(folder)
            start = len(inside.rstrip("/")) + 1
            found = [path[start:] for path in filesystem.find(inside)]
    return sorted(path for path in found if not f"/{path}".count("/."))


def remote_status(path: str) -> tuple[int, str]:
    """Bytes of a remote file, -1 where its store does not say, and a mark that a change changes.

    The mark is the store's checksum or time of the last change, empty where it gives neither.
    """
    with remote_errors(path):
        filesystem, inside = _filesystem(path)
        return _status_of(filesystem.info(inside))


def _status_of(info: Mapping[str, Any]) -> tuple[int, str]:
    size = info.get("size")
    mark = next((str(info[name]) for name in _MARKS if info.get(name) is not None), "")
    return (size if isinstance(size, int) else -1), mark


def find_remote(path: str, suffix: str) -> dict[str, tuple[int, str]] | None:
    """`find` and `remote_status` together; None for a path that is neither folder nor glob."""
    with remote_errors(path):
        filesystem, inside = _filesystem(path)
        pattern = _pattern(filesystem, inside, suffix)
        if pattern is None:
            return None
        found = filesystem.glob(pattern, detail=True)
        return {
            filesystem.unstrip_protocol(name): _status_of(found[name]) for name in sorted(found)
        }


def _pattern(filesystem: Any, inside: str, suffix: str) -> str | None:
    if filesystem.isdir(inside):
        return f"{inside.rstrip('/')}/*{suffix}"
    return inside if glob.has_magic(inside) else None


def find(path: str, suffix: str) -> list[str]:
    """The files that `path` means: a folder's files ending in `suffix`, a glob, or one file."""
    if protocol(path) is None:
        if os.path.isdir(path):
            return sorted(glob.glob(os.path.join(glob.escape(path), f"*{suffix}")))
        return sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    found = find_remote(path, suffix)
    return [path] if found is None else list(found)
