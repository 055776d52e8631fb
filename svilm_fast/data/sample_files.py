"""The files of samples: videos, shared palettes, json and stored embeddings."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.data import files, text
from svilm_fast.data.embeddings import MEMBER, most_bytes, read_vector
from svilm_fast.data.errors import DataError, EmbeddingError, PaletteError, ShardError
from svilm_fast.data.index.columns import bytes_at, damaged
from svilm_fast.data.index.schema import UNKNOWN
from svilm_fast.data.list_embeddings import ListIdentity, open_list_embeddings
from svilm_fast.data.palettes.format import (
    SHARED_NAME,
    is_compressed,
    read_shared,
    shared_number,
)
from svilm_fast.data.sample_rows import SampleRows
from svilm_fast.data.shards import Entry, first_member, parse_json

_SHARDS_KEPT = 16


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A whole file, or a member of a shard."""

    path: str
    entry: Entry | None = None


class SampleFiles(SampleRows):
    """Where the files of samples lie, and what is in them."""

    def video(self, place: int) -> StoredFile:
        """Where the video of a sample lies."""
        row = self._row(place)
        entry = self._entry("video", row)
        if entry is not None:
            return StoredFile(self._shard(row), entry)
        path = os.fsdecode(bytes_at(self.stored.columns, "path", row)) if self._has_paths else ""
        if not path or "\0" in path:
            raise damaged(f"row {row} has no video")
        if ".." in path.split("/"):
            raise DataError(f"{path!r} lies outside the folder of the videos")
        return StoredFile(self._root(row) + path)

    def listed_video(self, place: int) -> str | None:
        """The path of a list's video below its folder; None for a sample of a shard."""
        row = self._row(place)
        if self._entry("video", row) is not None or not self._has_paths:
            return None
        return text.storable(os.fsdecode(bytes_at(self.stored.columns, "path", row)))

    @property
    def _has_paths(self) -> bool:
        return "path_start" in self.stored.columns

    def read_video(self, place: int) -> bytes:
        """The bytes of a sample's video file."""
        video = self.video(place)
        if video.entry is None:
            return files.read_bytes(video.path, self.limits.video_bytes)
        label = self.id(place)
        data = self._reader.read(video.path, video.entry, label, self.limits.video_bytes)
        if not is_compressed(data):
            return data
        try:
            number = shared_number(data)
            return data if number is None else data + self._palettes(video.path)[number]
        except IndexError:
            raise PaletteError(f"{self.named(place)}: the shard has no palette {number}") from None
        except (PaletteError, ShardError) as error:
            raise PaletteError(f"{self.named(place)}: {error}") from None

    def named(self, place: int) -> str:
        """Sample and shard, for messages."""
        video = self.video(place)
        where = "" if video.entry is None else f" in {video.path.rpartition('/')[2]}"
        return f"{self.id(place)}{where}"

    def _palettes(self, shard: str) -> list[bytes]:
        """The shared palettes of a shard. Those of a few shards are kept."""
        found = self._shared.get(shard)
        if found is None:
            found = self._shared[shard] = read_shared(first_member(shard, SHARED_NAME))
            if len(self._shared) > _SHARDS_KEPT:
                self._shared.pop(next(iter(self._shared)))
        return found

    def read_metadata(self, place: int) -> dict[str, Any]:
        """A sample's json."""
        row = self._row(place)
        entry = self._entry("record", row)
        if entry is None:
            if "record_start" not in self.stored.columns:
                raise damaged(f"row {row} has no json")
            return parse_json(self.stored.text("record", row).encode(), self.id(place))
        name = self.id(place)
        data = self._reader.read(self._shard(row), entry, name, self.limits.json_bytes)
        return text.storable(parse_json(data, name))

    def read_embedding(self, place: int, width: int) -> np.ndarray:
        """The stored embedding of a sample, float32 [width]. Raises EmbeddingError."""
        row, name = self._row(place), self.id(place)
        source = int(self.stored.columns["shard"][row])
        if source in self._lists:
            vector = np.array(self._list_vectors(source, width)[row - self._first_row(source)])
            if not np.isfinite(vector).all():
                raise EmbeddingError(f"{name}: its list stores no finite embedding for it")
            return vector
        has_any = "embedding_size" in self.stored.columns
        entry = self._entry("embedding", row) if has_any else None
        if entry is None:
            raise EmbeddingError(f"{name}: no member {MEMBER} in its shard")
        data = self._reader.read(self._shard(row), entry, name, most_bytes(width))
        return read_vector(data, width, name)

    def embedding_member(self, place: int) -> bytes | None:
        """The file of a sample's embedding in its shard, as it is; None where it has none."""
        row = self._row(place)
        entry = self._entry("embedding", row) if "embedding_size" in self.stored.columns else None
        if entry is None:
            return None
        return self._reader.read(self._shard(row), entry, self.id(place), self.limits.video_bytes)

    def check_embeddings(self, width: int) -> None:
        """Raise EmbeddingError where a list stores no embeddings of this width."""
        for source in self._lists:
            self._list_vectors(source, width)

    def list_identity(self, source: int) -> ListIdentity:
        """What stored embeddings of the list at this place must have been made for."""
        sources = self.stored.header["sources"]
        starts = np.cumsum([0, *(each["places"] for each in sources)])
        checksum = sources[int(np.searchsorted(starts, source, "right")) - 1]["checksum"]
        first, stop = self._first_row(source), self._first_row(source + 1)
        return ListIdentity(stop - first, checksum, self._rows_digest(first, stop))

    def _rows_digest(self, first: int, stop: int) -> str:
        """Changes with the videos and segments of rows: which rows a list has is up to its videos.

        Ids are left out: they change where several sources are opened together.
        """
        columns, digest = self.stored.columns, hashlib.sha256()
        if stop > first and self._has_paths:
            starts = columns["path_start"][first : stop + 1]
            digest.update((starts - starts[0]).data)
            digest.update(columns["path_text"][starts[0] : starts[-1]].data)
        for name in ("segment_start", "segment_end"):
            if name in columns and not np.isnan(columns[name][first:stop]).all():
                digest.update(columns[name][first:stop].data)
        return digest.hexdigest()[:32]

    def _first_row(self, source: int) -> int:
        shards = self.stored.columns["shard"]
        # Of its dtype: a Python int would convert the whole column to int64 first.
        return int(np.searchsorted(shards, shards.dtype.type(source)))

    def _list_vectors(self, source: int, width: int) -> np.ndarray:
        if (source, width) not in self._vectors:
            self._vectors[source, width] = open_list_embeddings(
                self._lists[source], self.list_identity(source), width
            )
        return self._vectors[source, width]

    def _entry(self, kind: str, row: int) -> Entry | None:
        names = (f"{kind}_offset", f"{kind}_size", f"{kind}_crc")
        offset, size, crc = (self.stored.number(name, row) for name in names)
        if size == UNKNOWN:
            return None
        if offset < 0 or size < 0:
            raise damaged(f"the {kind} of row {row} lies outside its shard")
        return Entry(offset, size, None if crc == UNKNOWN else crc)

    def _shard(self, row: int) -> str:
        shard = self.stored.number("shard", row)
        return self._root(row) + os.fsdecode(bytes_at(self.stored.columns, "place", shard))

    def _root(self, row: int) -> str:
        place = self.stored.number("shard", row)
        return next(root for first, root in reversed(self._roots) if first <= place)
