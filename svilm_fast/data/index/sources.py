"""What a data set is made of now: its shards or list, and whether an index still describes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.data import files
from svilm_fast.data.index.columns import Columns, text_arrays
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.lists import is_list
from svilm_fast.data.shards import find_shards

_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Source:
    """A folder or glob of shards, or a list with the folder of its videos.

    path: as it was given. root: what the names in an index begin with; names: of the shards below
    it, one empty name for a list. sizes: bytes of local shards or of a list, -1 where unknown.
    changed: seconds, when the newest of them was changed.
    """

    path: str
    root: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    changed: float

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
        size, changed = _status(path)
        return Source(path, root, ("",), (size,), changed)
    shards = find_shards(path)
    root = _common(sorted({shard.rpartition("/")[0] for shard in shards}))
    found = [_status(shard) for shard in shards]
    return Source(
        path,
        root,
        tuple(shard.removeprefix(root) for shard in shards),
        tuple(size for size, _ in found),
        max(changed for _, changed in found),
    )


def _common(folders: list[str]) -> str:
    """The longest beginning of whole folders, with its `/`; empty where there is none."""
    first, last = folders[0].split("/"), folders[-1].split("/")
    same = next(
        (n for n, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last))
    )
    return "".join(f"{name}/" for name in first[:same]) if folders[0] else ""


def _status(path: str) -> tuple[int, float]:
    """Bytes of a local file and when it was changed; reading it says what is wrong with it."""
    with contextlib.suppress(OSError, ValueError):
        if files.protocol(path) is None:
            status = os.stat(path)
            return status.st_size, max(status.st_mtime, status.st_ctime)
    return -1, 0.0


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
    sources: Sequence[Source], header: Mapping[str, Any], columns: Columns, written: float | None
) -> str | None:
    """What has changed since an index was made; None: nothing.

    Names and sizes of local files count. A list that is newer than the index is read, to compare
    its checksum. written: seconds; a file that was changed later counts as another one. None: an
    index that may have been moved with its shards, so that times say nothing.
    """
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
        name = [each.path if each.is_list else n for each in sources for n in each.names][
            changed[0]
        ]
        return f"{name} has {sizes[changed[0]]} bytes, {columns['place_size'][changed[0]]} then"
    for source, described in zip(sources, header["sources"], strict=True):
        if source.is_list:
            if _checksum(source.path) != described["checksum"]:
                return f"{source.path} has other content"
        elif written is not None and source.changed > written:
            return f"shards of {source.path} were written since"
    return None


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
