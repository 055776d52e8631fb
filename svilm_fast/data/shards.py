"""WebDataset-style tar shards: written with an index, read by offset, never extracted."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import tarfile
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from svilm_fast.data import braces, files
from svilm_fast.data.errors import (
    ChecksumError,
    DataError,
    MissingFileError,
    SampleJsonError,
    ShardError,
)
from svilm_fast.data.tar import read_members

INDEX_SUFFIX = ".index.json"
INDEX_VERSION = 1
NAME_BYTES = 100  # of a member's name in a ustar header
_FETCHED_BYTES = 1 << 16
_FIRST_BYTES = 1 << 28
MAX_SHARD_BYTES = 1 << 30  # of members, after which a writer begins the next shard
OPEN_SHARDS = 64  # per reader; large sets have more shards than a process may open files


@dataclass(frozen=True)
class Entry:
    """Where a member's bytes lie; `crc32` is None when the shard has no index file."""

    offset: int
    size: int
    crc32: int | None = None


@dataclass
class ShardIndex:
    """The samples of one shard: for each key its members by extension."""

    path: str
    samples: dict[str, dict[str, Entry]] = field(default_factory=dict)


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """An object from JSON bytes; SampleJsonError for anything else.

    A key that occurs twice in one object, NaN and numbers without a finite value are refused:
    programs disagree about what they mean.
    """
    try:
        value = json.loads(
            data, object_pairs_hook=_object, parse_constant=finite, parse_float=finite
        )
    except (ValueError, RecursionError) as error:
        raise SampleJsonError(f"{label}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise SampleJsonError(f"{label}: expected a JSON object, found {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} occurs twice in an object")
    return found


def finite(number: str) -> float:
    """A number of a JSON text. Raises ValueError for one that is not finite."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.60} is not a finite number")
    return value


def split_name(name: str) -> tuple[str, str]:
    """`folder/key.mp4` to (`folder/key`, `mp4`), as WebDataset splits: at the first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def scan_shard(path: str, max_members: int = 2_000_000) -> ShardIndex:
    """Read every header of a tar file and group the members by key. Raises ShardError."""
    index = ShardIndex(path)
    with files.opened(path) as stream:
        total = stream.seek(0, os.SEEK_END)
        for member in read_members(stream, total, path, max_members=max_members):
            key, extension = split_name(member.name)
            index.samples.setdefault(key, {})[extension] = Entry(member.offset, member.size)
    return index


def load_index(path: str, max_members: int = 2_000_000) -> ShardIndex:
    """The index beside the shard, or a scan where there is none.

    Raises ShardError when the index belongs to another or a damaged version of the shard.
    """
    total = files.size_of(path)
    if not files.exists(path + INDEX_SUFFIX):
        return scan_shard(path, max_members)
    hint = f"delete {os.path.basename(path)}{INDEX_SUFFIX} or write the shard again"
    stored = parse_json(files.read_bytes(path + INDEX_SUFFIX, 1 << 30), path + INDEX_SUFFIX)
    if stored.get("version") != INDEX_VERSION:
        raise ShardError(f"{path}{INDEX_SUFFIX}: version {stored.get('version')!r}: {hint}")
    if stored.get("bytes") != total:
        raise ShardError(
            f"{path}: holds {total} bytes and its index says {stored.get('bytes')}: truncated or "
            f"changed; {hint}"
        )
    index = ShardIndex(path)
    try:
        for key, members in stored["samples"].items():
            entries = {e: Entry(*(int(v) for v in row)) for e, row in members.items()}
            for entry in entries.values():
                if min(entry.offset, entry.size) < 0 or entry.offset + entry.size > total:
                    raise ShardError(f"{path}{INDEX_SUFFIX}: {key!r} lies outside the shard")
            index.samples[key] = entries
        _check_apart(index)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{path}{INDEX_SUFFIX}: damaged ({error!r}): {hint}") from None
    return index


def _check_apart(index: ShardIndex) -> None:
    """Raise ShardError where members overlap: the index is not of this shard."""
    places = sorted(
        (entry.offset, entry.offset + entry.size, key, extension)
        for key, members in index.samples.items()
        for extension, entry in members.items()
        if entry.size
    )
    for (_, end, *first), (start, _, *second) in itertools.pairwise(places):
        if start < end:
            names = " and ".join(repr(".".join(name)) for name in (first, second))
            raise ShardError(
                f"{index.path}{INDEX_SUFFIX}: {names} overlap: delete the index or write the shard "
                "again"
            )


def first_member(path: str, name: str, limit: int = _FIRST_BYTES) -> bytes:
    """The bytes of the first member of a shard. Raises ShardError where it has another name."""
    try:
        with files.opened(path) as stream:
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "strict")
            data = stream.read(min(header.size, limit + 1))
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: damaged at its begin ({error})") from None
    if header.name != name:
        raise ShardError(f"{path}: its first member is {header.name!r:.120}, not {name!r}")
    if not 0 <= header.size == len(data) <= limit:
        raise ShardError(f"{path}: {name} is cut off, or larger than {limit} bytes")
    return data


class ShardReader:
    """Random access to the members of shards; safe across threads, forks and pickling."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, str], BinaryIO] = {}
        self._lock = threading.Lock()
        self._fetched: dict[tuple[str, Entry], bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def fetch(self, path: str, entries: Iterable[Entry]) -> None:
        """Fetch small members of a remote shard together; `read` then hands each out once.

        One read after the other would wait for the store each time.
        """
        if files.protocol(path) is None:
            return
        small = [entry for entry in entries if entry.size <= _FETCHED_BYTES]
        ranges = [(entry.offset, entry.offset + entry.size) for entry in small]
        found = files.read_ranges(path, ranges)
        self._fetched |= {(path, e): data for e, data in zip(small, found, strict=True)}

    def read(self, path: str, entry: Entry, label: str, limit: int) -> bytes:
        """The bytes of a member. Raises DataError over `limit`, ChecksumError when they changed."""
        if entry.size > limit:
            raise DataError(f"{label}: {entry.size} bytes, more than the limit of {limit}")
        data = self._fetched.pop((path, entry), None)
        if data is None:
            data = self._from_stream(path, entry)
        if len(data) != entry.size:
            raise ShardError(f"{label}: {path} ends inside this member")
        if entry.crc32 is not None and zlib.crc32(data) != entry.crc32:
            raise ChecksumError(f"{label}: the bytes in {path} differ from the index's checksum")
        return data

    def _from_stream(self, path: str, entry: Entry) -> bytes:
        remote = files.protocol(path) is not None
        with self._lock, files.remote_errors(path) if remote else contextlib.nullcontext():
            # keyed by process: a forked child must not move the parent's file position
            place = (os.getpid(), path)
            stream = self._streams.pop(place, None) or files.open_binary(path, read_ahead=False)
            self._streams[place] = stream  # now the most recent one
            if len(self._streams) > OPEN_SHARDS:
                self._streams.pop(next(iter(self._streams))).close()
            try:
                stream.seek(entry.offset)
            except (OSError, OverflowError, ValueError):  # a position that no file has
                raise ShardError(f"{path} has no byte {entry.offset}") from None
            return stream.read(entry.size)

    def close(self) -> None:
        with self._lock:
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()


def check_key(key: str, members: Iterable[str]) -> None:
    """Raise ShardError where a tar header cannot hold the names of a sample's members."""
    if not key or any(c in key for c in "./\\:\0\n"):
        raise ShardError(f"sample key {key!r} is empty or holds one of . / \\ :")
    longest = max((f"{key}.{extension}" for extension in members), key=len, default=key)
    try:
        size = len(longest.encode())
    except UnicodeEncodeError:
        raise ShardError(f"sample key {key!r} holds half a surrogate pair") from None
    if size > NAME_BYTES:
        raise ShardError(
            f"member name {longest!r} has {size} bytes, more than the {NAME_BYTES} of a tar header"
        )


class ShardFile:
    """One tar shard while it is written to `path`; byte-reproducible."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: dict[str, dict[str, list[int]]] = {}
        self.bytes = 0  # of members
        self._tar = tarfile.open(  # noqa: SIM115 (stays open between samples)
            path, "w", format=tarfile.USTAR_FORMAT
        )

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Add a sample: `members` maps an extension such as `mp4` or `json` to its bytes."""
        check_key(key, members)
        if key in self.samples:
            raise ShardError(f"sample key {key!r} is repeated")
        entries = self.samples.setdefault(key, {})
        for extension, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(data), 0o644
            header = len(info.tobuf(self._tar.format, self._tar.encoding, self._tar.errors))
            entries[extension] = [self._tar.offset + header, len(data), zlib.crc32(data)]
            self._tar.addfile(info, io.BytesIO(data))
            self.bytes += len(data)

    def close(self) -> str:
        """Finish the tar file; the text of the index that belongs beside it."""
        self._tar.close()
        index = {
            "version": INDEX_VERSION,
            "bytes": self.path.stat().st_size,
            "samples": self.samples,
        }
        return json.dumps(index)

    def abandon(self) -> None:
        """Close and remove the unfinished file."""
        self._tar.close()
        self.path.unlink(missing_ok=True)


class ShardWriter:
    """Writes `{prefix}-000000.tar` and so on with an index beside each; byte-reproducible.

    A shard appears under its name only when it is complete.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        *,
        max_samples: int = 1000,
        max_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix, self.max_samples, self.max_bytes = prefix, max_samples, max_bytes
        self.paths: list[Path] = []
        self._keys: set[str] = set()
        self._shard: ShardFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abandon()

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Add a sample: `members` maps an extension such as `mp4` or `json` to its bytes."""
        check_key(key, members)
        if key in self._keys:
            raise ShardError(f"sample key {key!r} is repeated")
        self._keys.add(key)
        shard = self._shard = self._shard or self._open()
        shard.add(key, members)
        if len(shard.samples) >= self.max_samples or shard.bytes >= self.max_bytes:
            self.close()

    def close(self) -> None:
        """Finish the shard that is being written."""
        if self._shard is None:
            return
        path = self._path
        path.with_name(path.name + INDEX_SUFFIX).write_text(self._shard.close())
        os.replace(self._shard.path, path)
        self.paths.append(path)
        self._shard = None

    @property
    def _path(self) -> Path:
        return self.folder / shard_name(self.prefix, len(self.paths))

    def _open(self) -> ShardFile:
        for place in (self._path, self._path.with_name(self._path.name + INDEX_SUFFIX)):
            if os.path.lexists(place):
                raise ShardError(f"{place} would be overwritten: choose another folder")
        return ShardFile(self.folder / f".{self._path.name}.partial")


def shard_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number:06d}.tar"


def find_shards(path: str) -> list[str]:
    """The tar files that a folder, a glob, a path or a path with braces means.

    Raises MissingFileError when there are none.
    """
    local = files.protocol(path) is None
    paths = [path] if local and os.path.exists(path) else braces.expand(path)
    found = [name for each in paths for name in files.find(each, ".tar") if name.endswith(".tar")]
    if not found:
        raise MissingFileError(f"no .tar shards at {path!r}")
    return found
