"""What a data set is made of now: its shards or list, and whether an index still describes them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.data import braces, files
from svilm_fast.data.index.columns import Columns, text_arrays, texts_of
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.index.schema import UNKNOWN
from svilm_fast.data.lists import is_list
from svilm_fast.data.shards import find_shards

_PIECE_BYTES = 1 << 24
_ASKED = 100  # remote shards that are named one by one: each costs a request
_COMPARED = 1000  # shards whose ends are read at most when an index is opened

_Status = tuple[int, float, str]  # an element of sizes, times and marks


@dataclass(frozen=True)
class Source:
    """A folder or glob of shards, or a list with the folder of its videos.

    path: as it was given. root: what the names in an index begin with; names: of the shards below
    it, one empty name for a list. For each name: sizes, bytes, -1 where unknown; times, seconds,
    when a local file was changed; marks, what `files.remote_status` says of a remote one.
    """

    path: str
    root: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    times: tuple[float, ...]
    marks: tuple[str, ...]

    @property
    def changed(self) -> float:
        """Seconds, when the newest of them was changed."""
        return max(self.times)

    def label(self, row: int) -> str:
        """The name of one of them in messages."""
        return self.path if self.is_list else self.names[row]

    def now(self) -> Source:
        """The same source, looked at again."""
        return _read_source(self.path, self.videos if self.is_list else None)

    @property
    def is_list(self) -> bool:
        return is_list(self.path)

    @property
    def is_local(self) -> bool:
        return files.protocol(self.path) is None

    @property
    def videos(self) -> str:
        """The folder of a list's videos."""
        return self.root[:-1] or "/"

    def identity(self, folder: str | None) -> list[str]:
        """The paths that tell sources apart; relative to `folder`, so that it may be moved."""
        paths = [self.path, *([self.videos] if self.is_list else [])]
        return [
            path
            if files.protocol(path)
            else os.path.relpath(path, folder)
            if folder
            else os.path.abspath(path)
            for path in paths
        ]


def read_sources(paths: Sequence[str], videos: str | None) -> tuple[Source, ...]:
    """Look at the sources; no shard or list is read. Raises DataError where there are none."""
    return tuple(_read_source(path, videos) for path in paths)


def _read_source(path: str, videos: str | None) -> Source:
    if is_list(path):
        root = (videos or os.path.dirname(path) or ".").rstrip("/") + "/"
        size, time, mark = _status(path)
        return Source(path, root, ("",), (size,), (time,), (mark,))
    shards, found = _shards(path)
    root = _common(sorted({shard.rpartition("/")[0] for shard in shards}))
    names = tuple(shard.removeprefix(root) for shard in shards)
    sizes, times, marks = zip(*found)
    return Source(path, root, names, sizes, times, marks)


def _shards(path: str) -> tuple[list[str], list[_Status]]:
    if files.protocol(path) is not None and not braces.expand(path)[1:]:
        found = files.find_remote(path, ".tar")
        listed = {name: status for name, status in (found or {}).items() if name.endswith(".tar")}
        if listed:
            return list(listed), [(size, 0.0, mark) for size, mark in listed.values()]
    shards = find_shards(path)
    if files.protocol(path) is not None and len(shards) > _ASKED:
        return shards, [(-1, 0.0, "")] * len(shards)
    return shards, [_status(shard) for shard in shards]


def _common(folders: list[str]) -> str:
    """The longest beginning of whole folders, with its `/`; empty where there is none."""
    first, last = folders[0].split("/"), folders[-1].split("/")
    same = next(
        (n for n, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last))
    )
    return "".join(f"{name}/" for name in first[:same]) if folders[0] else ""


def _status(path: str) -> _Status:
    """Size, time and mark of a file; reading it says what is wrong with it."""
    with contextlib.suppress(OSError, ValueError):  # a DataError among them
        if files.protocol(path) is None:
            status = os.stat(path)
            return status.st_size, max(status.st_mtime, status.st_ctime), ""
        size, mark = files.remote_status(path)
        return size, 0.0, mark
    return -1, 0.0, ""


def digest_of(sources: Sequence[Source], parameters: IndexParameters, folder: str | None) -> str:
    """Sixteen letters that name the index of sources; moved with `folder` it keeps them.

    An index of another version has the same name, so that it is refused or made again.
    """
    what = [parameters.as_dict(), [source.identity(folder) for source in sources]]
    return hashlib.sha256(json.dumps(what).encode(errors="surrogatepass")).hexdigest()[:16]


def describe(source: Source) -> dict[str, Any]:
    """What the header of an index says of a source."""
    described: dict[str, Any] = {"places": len(source.names)}
    if source.is_list:
        described["checksum"] = _checksum(source.path)
    return described


def difference(
    sources: Sequence[Source],
    header: Mapping[str, Any],
    columns: Columns,
    written: float,
    *,
    moved: bool,
) -> str | None:
    """What has changed since an index was made; None: nothing.

    Names and sizes count, and the marks of remote files. A list is read, to compare its checksum.

    Args:
        written: seconds, when the index was written.
        moved: whether the index may have been copied with its shards, so that their times alone say
            nothing: the ends of shards that are newer than the index are compared, of at most 1,000
            of them. Else a newer shard counts as another one.
    """
    if len(header["sources"]) != len(sources):
        return "other sources are named now"
    names = [name.encode(errors="surrogateescape") for each in sources for name in each.names]
    starts, blob = text_arrays(names)
    if not np.array_equal(starts, columns["place_start"]):
        return f"{len(names)} files are there now, {len(columns['place_size'])} were indexed"
    if not np.array_equal(blob, columns["place_text"]):
        return "other files are there now"
    sizes = np.array([size for each in sources for size in each.sizes])
    known = (sizes >= 0) & (columns["place_size"] >= 0)
    changed = np.flatnonzero(known & (sizes != columns["place_size"]))
    if len(changed):
        row = int(changed[0])
        return f"{_label(sources, row)} has {sizes[row]} bytes, {columns['place_size'][row]} then"
    if "place_mark_start" in columns:
        marks = [mark for each in sources for mark in each.marks]
        for row, (mark, then) in enumerate(zip(marks, texts_of(columns, "place_mark"))):
            if mark and then and mark.encode() != then:
                return f"{_label(sources, row)} was written anew"
    for source, described in zip(sources, header["sources"], strict=True):
        if source.is_list:
            if _checksum(source.path) != described.get("checksum"):
                return f"{source.path} has other content"
        elif not moved and source.changed > written:
            return f"shards of {source.path} were written since"
    return _other_ends(sources, columns, written) if moved else None


def _other_ends(sources: Sequence[Source], columns: Columns, written: float) -> str | None:
    times = np.array([time for each in sources for time in each.times])
    newer = np.flatnonzero((times > written) & (columns["place_ends"] != UNKNOWN))
    if len(newer) > _COMPARED:
        newer = newer[np.linspace(0, len(newer) - 1, _COMPARED).astype("<i8")]
    paths = [source.root + name for source in sources for name in source.names]
    for row in newer.tolist():
        if files.ends_crc(paths[row]) != columns["place_ends"][row]:
            return f"{_label(sources, row)} has other content"
    return None


def _label(sources: Sequence[Source], row: int) -> str:
    """The name of file number `row` in messages."""
    labels = (each.label(n) for each in sources for n in range(len(each.names)))
    return next(itertools.islice(labels, row, None))


def _checksum(path: str) -> int:
    checksum = 0
    with files.opened(path) as stream:
        while piece := stream.read(_PIECE_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def folder_of(source: Source) -> Path | None:
    """The folder beside whose files an index may lie; None for remote sources."""
    if not source.is_local:
        return None
    if os.path.isdir(source.path):
        return Path(source.path)
    return Path(os.path.dirname(source.path) or "." if source.is_list else source.root or ".")
