"""Units of off-line work on samples: the shards of a source, or pieces of a list."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.data import files
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.work import Unit
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.shards import INDEX_SUFFIX, find_shards

_PIECE = 1000  # samples of a list in one unit


@dataclass(frozen=True)
class ListPiece:
    """Samples `first` to `stop` of a list."""

    path: str
    videos: str | None
    first: int
    stop: int


def shard_units(source: str) -> list[Unit]:
    """A unit for each shard, named like it; its content is the shard's path."""
    shards = find_shards(source)
    names = [path.rpartition("/")[2] for path in shards]
    if len(set(names)) < len(names):
        raise DataError(f"{source!r} names shards of one name in several folders")
    return [
        Unit(name, _absolute(path), [name, *_content(path)])
        for name, path in zip(names, shards, strict=True)
    ]


def list_units(
    source: str, videos: str | None, table: SampleTable, size: int | None = None
) -> list[Unit]:
    """A unit for every `size` samples of a list, as a ListPiece; `table` is opened from it.

    size: None: 1,000.
    """
    size = size or _PIECE
    name = source.rpartition("/")[2].rpartition(".")[0]
    folder = None if videos is None else _absolute(videos)
    identity = table.list_identity(0)
    return [
        Unit(
            f"{name}-{number:06d}",
            ListPiece(_absolute(source), folder, first, stop),
            [identity.checksum, identity.rows, table.fingerprint, table.contents, first, stop],
            stop - first,
        )
        for number, first in enumerate(range(0, len(table), size))
        for stop in [min(first + size, len(table))]
    ]


def _content(shard: str) -> list[Any]:
    """Changes with the content of a shard, of which the size alone says little: tar pads.

    Of a local shard: the index beside it, which holds a checksum of every member, and the CRC-32 of
    the ends, where a shard without an index changes unnoticed between them. Of a remote one: the
    mark of its store.
    """
    if files.protocol(shard) is not None:
        return list(files.remote_status(shard))
    index = Path(shard + INDEX_SUFFIX)
    checksums = hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None
    return [files.size_of(shard), files.ends_crc(shard), checksums]


def _absolute(path: str) -> str:
    return os.path.abspath(path) if files.protocol(path) is None else path
