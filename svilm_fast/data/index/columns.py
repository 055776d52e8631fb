"""Files of named columns: a JSON header, then little-endian arrays at multiples of 64 bytes.

    8 bytes  magic
    8 bytes  length of the header
    header   JSON: `columns` maps a name to [dtype, elements, offset]; the rest is the writer's
    columns  at multiples of 64 bytes; offsets count from the first such place behind the header

Texts are two columns: `<name>_start`, int64 [n + 1], and `<name>_text`, their UTF-8 bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import mmap
import operator
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.core.files import sync
from svilm_fast.data.errors import DataError

MAGIC = b"SVILMIX1"
_ALIGNMENT = 64
_HEADER_BYTES = 1 << 28
_DTYPES = {"|u1", "<u4", "<i8", "<f4", "<f8"}
_PIECE = 1 << 20  # elements that are converted or written in one go

Columns = dict[str, np.ndarray]


class Spool:
    """Arrays of one dtype, appended one after the other in memory or in an unnamed file."""

    def __init__(self, dtype: str, folder: Path | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._parts: list[np.ndarray] = []
        # Unlinked from the start: a process that is killed leaves nothing behind.
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def append(self, values: Any) -> None:
        array = np.asarray(values, self.dtype)
        self.count += len(array)
        if self._file is None:
            self._parts.append(array)
        else:
            self._file.write(array.tobytes())

    def array(self) -> np.ndarray:
        """All of them, writable; of a file, its mapped bytes."""
        if self._file is None:
            return np.concatenate([np.empty(0, self.dtype), *self._parts])
        self._file.flush()
        if not self.count:
            return np.empty(0, self.dtype)
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0), self.dtype)


class Spools:
    """Columns that grow."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._spools: dict[str, Spool] = {}
        self._ends: dict[str, int] = {}

    def append(self, name: str, dtype: str, values: Any) -> None:
        if name not in self._spools:
            self._spools[name] = Spool(dtype, self._folder)
        self._spools[name].append(values)

    def append_starts(self, name: str, starts: np.ndarray) -> None:
        """Append n lists by their starts, int64 [n + 1] from 0, the last being their length."""
        if name not in self._ends:
            self._ends[name] = 0
            self.append(name, "<i8", [0])
        self.append(name, "<i8", starts[1:] + self._ends[name])
        self._ends[name] += int(starts[-1])

    def append_texts(self, name: str, starts: np.ndarray, blob: np.ndarray) -> None:
        """Append texts as `text_arrays` gives them."""
        self.append_starts(f"{name}_start", starts)
        self.append(f"{name}_text", "u1", blob)

    def columns(self) -> Columns:
        return {name: spool.array() for name, spool in self._spools.items()}


def text_arrays(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Starts int64 [n + 1] and bytes uint8 of texts."""
    starts = np.zeros(len(texts) + 1, "<i8")
    np.cumsum([len(each) for each in texts], out=starts[1:])
    return starts, np.frombuffer(b"".join(texts), "u1")


def text_at(columns: Mapping[str, np.ndarray], name: str, row: int) -> str:
    """The text of one row. Raises DataError where it is none."""
    try:
        return bytes_at(columns, name, row).decode()
    except UnicodeDecodeError:
        raise damaged(f"row {row} of {name!r} is no UTF-8 text") from None


def bytes_at(columns: Mapping[str, np.ndarray], name: str, row: int) -> bytes:
    """The UTF-8 bytes of one row. Raises DataError where the columns contradict each other."""
    blob = columns[f"{name}_text"]
    start, stop = range_at(columns[f"{name}_start"], name, row, len(blob))
    return blob[start:stop].tobytes()


def range_at(starts: np.ndarray, name: str, row: int, length: int) -> tuple[int, int]:
    """The range of elements of one row, inside `length` of them. Raises DataError."""
    if not 0 <= row < len(starts) - 1:
        raise damaged(f"there is no row {row} of {name!r}")
    start, stop = starts[row : row + 2].tolist()
    if not 0 <= start <= stop <= length:
        raise damaged(f"row {row} of {name!r} lies outside")
    return start, stop


def damaged(what: str) -> DataError:
    return DataError(f"the index is damaged: {what}: make it again")


def texts_of(
    columns: Mapping[str, np.ndarray], name: str, rows: np.ndarray | None = None
) -> Iterator[bytes]:
    """The UTF-8 bytes of all rows, or of `rows`, read in pieces."""
    starts, blob = columns[f"{name}_start"], columns[f"{name}_text"]
    for first in range(0, len(starts) - 1 if rows is None else len(rows), _PIECE):
        if rows is not None:
            piece = rows[first : first + _PIECE]
            if len(piece) and not 0 <= piece.min() <= piece.max() < len(starts) - 1:
                raise damaged(f"{name!r} has fewer rows")
            _require_inside(name, starts[piece], starts[piece + 1], blob)
            for start, stop in zip(starts[piece].tolist(), starts[piece + 1].tolist()):
                yield blob[start:stop].tobytes()
            continue
        places = starts[first : first + _PIECE + 1]
        _require_inside(name, places[:-1], places[1:], blob)
        data, base = blob[places[0] : places[-1]].tobytes(), int(places[0])
        ends = (places - base).tolist()
        for start, stop in itertools.pairwise(ends):
            yield data[start:stop]


def _require_inside(name: str, starts: np.ndarray, stops: np.ndarray, blob: np.ndarray) -> None:
    if ((starts < 0) | (starts > stops) | (stops > len(blob))).any():
        raise damaged(f"rows of {name!r} lie outside")


def write_columns(path: Path, header: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> None:
    """Write a file of columns under a temporary name, and rename it when it is complete.

    The name is always the same, so that the next call replaces what a killed process has left.
    Raises DataError where another process writes the same file.
    """
    temporary = path.with_name(f".{path.name.lstrip('.')}.svilm-columns-partial")
    with locked_file(temporary, f"another process writes {path}: wait for it"):
        try:
            save_columns(temporary, header, columns)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextlib.contextmanager
def locked_file(path: Path, in_use: str) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing. Raises DataError(in_use)."""
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(in_use) from None
            if _has_name(lock.fileno(), path):  # else another process has renamed or removed it
                yield
                return


def _has_name(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def save_columns(path: Path, header: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> None:
    """Write a file of columns. Equal headers and columns give equal bytes."""
    places: dict[str, tuple[str, int, int]] = {}
    offset = 0
    for name in sorted(columns):
        array = columns[name]
        places[name] = (array.dtype.str, len(array), offset)
        offset = _aligned(offset + array.nbytes)
    text = json.dumps({**header, "columns": places}, sort_keys=True).encode()
    with path.open("wb") as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        start = _aligned(file.tell())
        for name, (_, _, place) in places.items():
            file.seek(start + place)
            for piece in _pieces(columns[name]):
                file.write(piece.tobytes())
        file.truncate(start + offset)
        file.flush()
        os.fsync(file.fileno())


def _pieces(array: np.ndarray) -> Iterable[np.ndarray]:
    return (array[first : first + _PIECE] for first in range(0, len(array), _PIECE))


def read_columns(path: str) -> tuple[dict[str, Any], Columns, mmap.mmap]:
    """Header, columns and mapping of a file; the columns are read-only. Raises DataError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(16)
        length = int.from_bytes(start[8:], "little")
        if start[:8] != MAGIC or length > min(size, _HEADER_BYTES):
            raise DataError(f"{path!r} is not an index of this version")
        try:
            header = json.loads(file.read(length))
            places = [
                (name, kind, operator.index(count), operator.index(offset))
                for name, (kind, count, offset) in header.pop("columns").items()
            ]
            wrong = [n for n, kind, *row in places if kind not in _DTYPES or min(row) < 0]
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path!r} is a damaged index: {error!r}") from None
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    base, columns = _aligned(16 + length), {}
    for name, kind, count, offset in places:
        place = base + offset
        if name in wrong or place + count * np.dtype(kind).itemsize > size:
            raise DataError(f"{path!r} is a damaged index: the column {name!r} is not inside it")
        columns[name] = np.frombuffer(data, kind, count, place) if count else np.empty(0, kind)
    return header, columns, data


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
