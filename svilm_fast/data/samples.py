"""The samples of a split: a view of an index for one grain of captions."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.data import files, text
from svilm_fast.data.annotations import ANNOTATIONS, Annotations, Label, from_column
from svilm_fast.data.captions import REPAIRED
from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.embeddings import MEMBER, most_bytes, read_vector
from svilm_fast.data.errors import (
    DataError,
    EmbeddingError,
    MissingFileError,
    PaletteError,
    ShardError,
)
from svilm_fast.data.index.columns import bytes_at, damaged, texts_of
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.names import fingerprint
from svilm_fast.data.index.schema import GRAINS, UNKNOWN, caption_codes, mixed_weights
from svilm_fast.data.index.sources import read_sources
from svilm_fast.data.index.store import open_index
from svilm_fast.data.list_embeddings import ListIdentity, open_list_embeddings
from svilm_fast.data.lists import VideoFolder
from svilm_fast.data.nouns import OTHER_LANGUAGE
from svilm_fast.data.offline.manifest import digest
from svilm_fast.data.palettes.format import (
    SHARED_NAME,
    is_compressed,
    read_shared,
    shared_number,
)
from svilm_fast.data.segments import Segment
from svilm_fast.data.selection import Selection, open_selection
from svilm_fast.data.shards import Entry, ShardReader, first_member, parse_json
from svilm_fast.data.skips import Skip

WITHOUT_NOUNS = "captions without nouns"

_RELEASED_EVERY = 1 << 14
_SHARDS_KEPT = 16

# For each sample the one with whose captions it is shown, by place in the table.
Shuffle = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A whole file, or a member of a shard."""

    path: str
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip with its captions; `nouns` has a tuple per caption, or None where none are known.

    `segment` is the part of the video that the clip is, in seconds; None: all of it.
    """

    id: str
    captions: tuple[str, ...]
    nouns: tuple[tuple[str, ...] | None, ...]
    video: StoredFile
    segment: Segment | None = None


class Ids(Sequence[str]):
    """The ids of a table, each read from the index when it is asked for."""

    def __init__(self, table: SampleTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._table.id(row) for row in range(len(self))[place]]
        return self._table.id(range(len(self))[place])

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self._table.encoded_ids())


class SampleTable(Sequence[Sample]):
    """Samples in a fixed order, with what was refused while listing them.

    It holds no sample: every question is answered from the columns of an index, which processes
    share. Ids that occur again get `~2`, `~3` and so on.

    Args:
        index: of all sources of the split.
        roots: what the names of shards begin with, or the paths of videos: (first place, text).
        grain: which captions are read.
        limits: what reading a sample may cost.
        lists: the lists among the sources, by their place.
    """

    def __init__(
        self,
        index: Index,
        roots: Sequence[tuple[int, str]],
        grain: str,
        limits: LimitsConfig,
        lists: Mapping[int, str] | None = None,
    ) -> None:
        self.stored, self.grain, self.limits = index, grain, limits
        self._roots = tuple(roots)
        self._places: np.ndarray | None = None  # int64 [n] of those that the grain has; None: all
        self._shuffle: Shuffle | None = None
        self._view: dict[str, Any] = index.header["views"][grain]
        self._prefix: str = self._view["prefix"]
        self._codes = caption_codes(grain)
        self._selection: Selection | None = None  # that `_places` are mapped from
        self._mix: dict[str, float] = {}  # shares of the grains; empty: only `grain`
        self._reader = ShardReader()
        self._lists = dict(lists or {})
        self._vectors: dict[tuple[int, int], np.ndarray] = {}  # of lists, mapped
        self._shared: dict[str, list[bytes]] = {}  # palettes of shards

    def __len__(self) -> int:
        return int(self._view["samples"]) if self._places is None else len(self._places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(len(self))[place]]
        place = range(len(self))[place]
        captions = self.captions_of(place)
        return Sample(
            self.id(place),
            tuple(map(self.caption, captions)),
            tuple(map(self.nouns, captions)),
            self.video(place),
            self.segment(place),
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("rejected", "contents", "_shard_samples"):
            kept.pop(name, None)
        if self._selection is not None:
            kept["_places"] = None  # mapped again, not copied
        return {**kept, "_vectors": {}, "_shared": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._selection is not None:
            self._places = self._selection.places

    def select(self, places: Sequence[int]) -> SampleTable:
        """Some of the samples; none of those refused while listing."""
        chosen = np.asarray(places, np.int64)
        chosen = chosen if self._places is None else self._places[chosen]
        return self._with(_places=chosen, _selection=None)

    def selected(self, path: str) -> SampleTable:
        """The samples of a selection (`data.selection`), mapped from its file.

        Raises DataError for one that was made for other samples or another grain of captions.
        """
        selection = open_selection(path)
        if (selection.captions, selection.fingerprint) != (self.grain, self.fingerprint):
            raise DataError(
                f"data.select={path} was made for {selection.samples:,} samples with "
                f"{selection.captions} captions, and the data has {len(self):,} with {self.grain}: "
                "these are other ones; make it again with `svilm data filter` of the same source "
                "and captions"
            )
        return self._with(_places=selection.places, _selection=selection)

    def shuffled(self, shuffle: Shuffle) -> SampleTable:
        """The samples with captions of each other."""
        return self._with(_shuffle=shuffle)

    def mixed(self, shares: Mapping[str, float]) -> SampleTable:
        """The same samples with the captions of several grains, drawn in these shares.

        Empty: the table itself. Raises DataError where the table's own grain has no share, without
        which a sample might have nothing to draw.
        """
        if not shares:
            return self
        if self.grain not in shares:
            raise DataError(
                f"data.caption_mix has no share of {self.grain!r} captions, which data.captions "
                f"says every sample has: set data.caption_mix.{self.grain} above 0, or "
                f"data.captions={next(iter(shares))}"
            )
        codes = dict.fromkeys(code for grain in shares for code in caption_codes(grain))
        return self._with(_mix=dict(shares), _codes=tuple(codes))

    def with_nouns(self, config: DataConfig, split: str) -> SampleTable:
        """The same samples with nouns for all captions, found where none are stored.

        Raises DataError where that needs the index of `split` and it is of other samples.
        """
        if self.stored.header["has_nouns"]:
            return self
        if self.stored.path is None:
            index = self.stored.with_nouns(config.nouns)
        else:
            index = open_split(config, split, nouns=True).stored
            if index.header["views"][self.grain]["fingerprint"] != self._view["fingerprint"]:
                raise DataError(
                    f"the table holds other samples than data.{split}={getattr(config, split)!r}: "
                    "open it with these settings, or with nouns"
                )
        return self._with(stored=index, _view=index.header["views"][self.grain])

    def _with(self, **changed: Any) -> SampleTable:
        table = copy.copy(self)
        if "_places" in changed:  # what was found of other samples
            for name in ("rejected", "contents", "_shard_samples"):
                table.__dict__.pop(name, None)
        table.__dict__.update(changed)
        return table

    def _row(self, place: int) -> int:
        """The row of the index for a place in the table."""
        place = self._place(place)
        if not self._prefix:
            return place
        row = self.stored.number(f"{self._prefix}rows", place)
        if not 0 <= row < len(self.stored.columns["shard"]):
            raise damaged(f"there is no sample in row {row}")
        return row

    def _place(self, place: int) -> int:
        return place if self._places is None else int(self._places[place])

    def _rows(self) -> np.ndarray:
        if not self._prefix:
            return np.arange(len(self)) if self._places is None else self._places
        rows = self.stored.columns[f"{self._prefix}rows"]
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.stored.header["samples"]:
            raise damaged("samples are named that it does not have")
        return rows if self._places is None else rows[self._places]

    # what a sample is

    @property
    def ids(self) -> Ids:
        return Ids(self)

    def id(self, place: int) -> str:
        return self.stored.text(f"{self._prefix}id", self._place(place))

    def encoded_ids(self) -> Iterator[bytes]:
        """All ids in order, as UTF-8."""
        return texts_of(self.stored.columns, f"{self._prefix}id", self._places)

    @property
    def keys(self) -> np.ndarray:
        """`sample_key` of the ids, int64 [n]; of a whole table the mapped column itself."""
        keys = self.stored.columns[f"{self._prefix}key"]
        return keys if self._places is None else keys[self._places]

    def keys_at(self, places: Sequence[int]) -> np.ndarray:
        """`sample_key` of some samples, int64 [b]."""
        rows = np.asarray(places, np.int64)
        found = rows if self._places is None else self._places[rows]
        return self.stored.columns[f"{self._prefix}key"][found]

    def sources_at(self, places: Sequence[int]) -> np.ndarray:
        """Keys int64 [b] of the source videos of some samples; equal for clips of one."""
        columns = self.stored.columns
        if "source" not in columns:
            return self.keys_at(places)
        return columns["source"][[self._row(place) for place in places]]

    @property
    def same_source(self) -> dict[str, Any]:
        """Whether the clips of every source follow one another, and the most that one has.

        The facts are of the whole index: a part of it has no other order, and no more of a source.
        """
        return self.stored.header["same_source"]

    def captions_of(self, place: int) -> list[int]:
        """The rows of a sample's captions in the index."""
        place = self._place(place)
        if self._shuffle is not None:
            place = int(self._shuffle(np.array([place]))[0])
        columns = self.stored.columns
        row = self.stored.number(f"{self._prefix}rows", place) if self._prefix else place
        first, stop = self.stored.range("first_caption", row, "caption_grain")
        grains = columns["caption_grain"][first:stop].tolist()
        return [first + offset for offset, code in enumerate(grains) if code in self._codes]

    def caption(self, row: int) -> str:
        return self.stored.text("caption", row)

    def caption_weights(self, rows: Sequence[int]) -> np.ndarray | None:
        """Weights float64 [captions] of a sample's captions; None where all are equal.

        Of a mix of grains, those of a grain add up to its share.
        """
        weights = self.stored.columns.get("caption_weight")
        if not self._mix:
            if weights is None or not rows or math.isnan(weights[rows[0]]):
                return None
            return weights[rows]
        codes = self.stored.columns["caption_grain"][rows]
        return mixed_weights(codes, None if weights is None else weights[rows], self._mix)

    def nouns(self, row: int) -> tuple[str, ...] | None:
        """The nouns of a caption; None where it brings none and nobody has looked for them."""
        columns = self.stored.columns
        if "nouns_missing" in columns and columns["nouns_missing"][row]:
            return None
        first, stop = self.stored.range("first_noun", row, "noun")
        words = columns["noun"][first:stop].tolist()
        return tuple(self.stored.text("word", word) for word in words)

    def captions(self) -> Iterator[str]:
        """All captions of all samples in order."""
        for place in range(len(self)):
            yield from map(self.caption, self.captions_of(place))
            if place % _RELEASED_EVERY == 0:
                self.stored.release()

    def segment(self, place: int) -> Segment | None:
        columns = self.stored.columns
        if "segment_start" not in columns:
            return None
        row = self._row(place)
        if not 0 <= row < len(columns["segment_start"]):
            raise damaged(f"there is no row {row}")
        start = float(columns["segment_start"][row])
        return None if math.isnan(start) else (start, float(columns["segment_end"][row]))

    def label(self, place: int) -> Label | list[Label] | None:
        """The label or labels of a sample; None where it has none. Raises AnnotationError."""
        return self._annotation("label", place)

    def labels(self) -> Iterator[Label | list[Label] | None]:
        """The label of every sample in order."""
        return map(self.label, range(len(self)))

    def annotations(self, place: int) -> Annotations:
        """Label, question and answers of a sample. Raises AnnotationError."""
        label, question, answers = (self._annotation(name, place) for name in ANNOTATIONS)
        return Annotations(label, question, answers or [])

    def _annotation(self, name: str, place: int) -> Any:
        if f"{name}_start" not in self.stored.columns:
            return None
        encoded = self.stored.text(name, self._row(place))
        try:
            return from_column(name, encoded, self.id(place)) if encoded else None
        except (ValueError, KeyError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise damaged(f"{name!r} of {self.id(place)!r} is no JSON") from None

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

    def index_row(self, place: int) -> int:
        """The row of a sample in the index, which no grain of captions changes."""
        return self._row(place)

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

    # what is known of all samples

    @functools.cached_property
    def rejected(self) -> list[Skip]:
        """What was refused while listing the samples."""
        columns = self.stored.columns
        if self._places is not None or not self._view["rejected"]:
            return []
        rows = np.flatnonzero(columns["rejected_grains"] & (1 << GRAINS.index(self.grain)))
        names = ("rejected_name", "rejected_reason", "rejected_message")
        return [Skip(*(self.stored.text(name, row) for name in names)) for row in rows.tolist()]

    @property
    def notes(self) -> Counter[str]:
        """What was repaired and kept."""
        return +Counter({REPAIRED: self._view["repaired"]})

    @property
    def noun_notes(self) -> Counter[str]:
        """How many captions have no nouns; known where nouns were looked for."""
        counts = {WITHOUT_NOUNS: "without_nouns", OTHER_LANGUAGE: "other_language"}
        return +Counter({note: self._view[name] for note, name in counts.items()})

    def shard_starts(self) -> np.ndarray:
        """The place of the first sample of each shard, and their number: int64 [shards + 1].

        Shards without a sample count too; a list is one shard.
        """
        shards = self.stored.columns["shard"]
        if self._prefix or self._places is not None:
            shards = shards[self._rows()]
        every = np.arange(len(self.stored.columns["place_size"]) + 1, dtype=shards.dtype)
        return np.searchsorted(shards, every)

    def places_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The places int64 [m] of ascending rows of the index. Raises DataError for others."""
        mine = self._rows()
        places = np.searchsorted(mine, rows)
        if len(rows) and (places[-1] >= len(mine) or (mine[places] != rows).any()):
            raise DataError("rows of the index that the split does not have")
        return places

    def shard_samples(self) -> np.ndarray:
        """Samples of each shard, int64 [shards], in their order; a list counts as one shard."""
        return self._shard_samples

    @functools.cached_property
    def _shard_samples(self) -> np.ndarray:
        shards = self.stored.columns["shard"]
        if self._prefix or self._places is not None:
            shards = shards[self._rows()]
        ends = np.flatnonzero(shards[1:] != shards[:-1]) + 1  # samples lie shard by shard
        sizes = np.diff(ends, prepend=0, append=len(shards))
        return sizes[sizes > 0]

    @property
    def fingerprint(self) -> str:
        """Changes when ids, captions, segments, their order or the mix of grains change."""
        own = str(self._view["fingerprint"])
        if self._selection is not None:
            own = digest([own, self._selection.digest])[:32]
        elif self._places is not None:
            own = fingerprint(self.stored.columns, self.encoded_ids(), self._rows(), self.grain)
        if not self._mix:
            return own
        views = self.stored.header["views"]
        others = {grain: [share, views[grain]["fingerprint"]] for grain, share in self._mix.items()}
        return digest([own, others])[:32]

    @functools.cached_property
    def contents(self) -> str:
        """Changes when a video is replaced under its name: sizes and checksums of all of them.

        A member of an indexed shard has a CRC-32 there. Of a local file the size and the CRC-32 of
        its two ends are taken, so that large files cost two small reads. Other videos count by name
        alone.
        """
        if self._places is None and self._view["contents"] is not None:
            return str(self._view["contents"])
        digest = hashlib.sha256()
        for place, name in enumerate(self.encoded_ids()):
            video = self.video(place)
            if video.entry is not None:
                found = f"{video.entry.size} {video.entry.crc32}"
            else:
                try:
                    is_file = os.path.isfile(video.path)
                    found = files.ends_checksum(video.path) if is_file else ""
                except (OSError, DataError):
                    found = ""  # reading it for training will say why
            digest.update(name + f"\x1f{found}\x1e".encode())
        return digest.hexdigest()[:32]


def open_split(config: DataConfig, split: str, *, nouns: bool = False) -> SampleTable:
    """The samples of `config.train`, `.val` or `.test`.

    nouns: find them for captions that come without, as `config.nouns` says. Raises DataError when
    there are no samples.
    """
    where = getattr(config, split)
    if where is None:
        raise MissingFileError(
            f"data.{split} is not set: give a folder of shards or a CSV or JSONL list"
        )
    try:
        sources = read_sources([where] if isinstance(where, str) else where, config.videos)
        index = open_index(sources, config, nouns=nouns)
        for source in sources:
            if source.is_list:
                VideoFolder(source.videos)  # the folder of the videos is there
    except DataError as error:
        raise type(error)(f"data.{split}: {error}") from error
    starts = np.cumsum([0, *(len(source.names) for source in sources)]).tolist()
    roots = [(first, source.root) for first, source in zip(starts, sources)]
    lists = {first: each.path for first, each in zip(starts, sources) if each.is_list}
    table = SampleTable(index, roots, config.captions, config.limits, lists)
    if split == "train" and config.select is not None:
        table = table.selected(config.select)
    if not len(table):
        rejected = table.rejected
        example = f"; for example {rejected[0].sample}: {rejected[0].message}" if rejected else ""
        raise DataError(f"data.{split}={where!r} holds no usable sample{example}")
    return table
