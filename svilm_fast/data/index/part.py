"""One part of an index: the samples of a shard, or of a list, as columns.

`build_part` is a pure function of a shard and the parameters. Rows are samples that are usable with
at least one grain of captions; `grains` says with which.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svilm_fast.data import files, text
from svilm_fast.data.annotations import ANNOTATIONS, to_columns
from svilm_fast.data.captions import Captions, pick_captions, row_record
from svilm_fast.data.config import DataConfig, NounsConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.embeddings import MEMBER as EMBEDDING
from svilm_fast.data.errors import CaptionError, DataError, MissingFileError
from svilm_fast.data.index.columns import Columns, text_arrays
from svilm_fast.data.index.nouns import find_nouns
from svilm_fast.data.index.schema import (
    CAPTIONED,
    DTYPES,
    EVERY,
    EVERY_CAPTIONED,
    GRAINS,
    NONE,
    UNKNOWN,
    starts_of,
)
from svilm_fast.data.keys import sample_key
from svilm_fast.data.lists import ListFile, ListRow, VideoFolder
from svilm_fast.data.nouns import build_extractor
from svilm_fast.data.palettes.format import MEMBER, SHARED_KEY, SHARED_MEMBER
from svilm_fast.data.segments import KEY as SEGMENT
from svilm_fast.data.segments import Segment, segment_of_json, segment_of_row, segment_to_json
from svilm_fast.data.shards import Entry, ShardReader, load_index, parse_json
from svilm_fast.data.skips import Skip
from svilm_fast.data.source_ids import source_key

_TEXT_BYTES = 1 << 16
LIST_ROWS = 20_000  # of a part
_FETCHED_TOGETHER = 256  # samples whose small members are read from a store in one go


@dataclass(frozen=True)
class IndexParameters:
    """What the rows of an index depend on, besides its sources.

    nouns: how nouns are found in captions that bring none; None: they are not.
    """

    json_bytes: int
    shard_members: int
    nouns: NounsConfig | None = None

    @classmethod
    def of(cls, config: DataConfig, *, nouns: bool) -> IndexParameters:
        limits = config.limits
        return cls(limits.json_bytes, limits.shard_members, config.nouns if nouns else None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; settings that change no row are left out."""
        values = asdict(self)
        if self.nouns is not None:
            names = ["extractor", "phrases"]
            names += ["spacy_model"] if self.nouns.extractor == "spacy" else []
            values["nouns"] = {name: getattr(self.nouns, name) for name in names}
        return values


def build_part(shard: str, parameters: IndexParameters) -> Columns:
    """The samples of one tar shard.

    Raises ShardError for a damaged shard; damaged samples are listed as rejected.
    """
    part = _Part()
    reader = ShardReader()
    samples = load_index(shard, parameters.shard_members).samples
    keys = list(samples)
    if set(samples.get(SHARED_KEY, ())) == {SHARED_MEMBER}:  # palettes, no sample
        keys.remove(SHARED_KEY)
    for first in range(0, len(keys), _FETCHED_TOGETHER):
        some = [(key, samples[key]) for key in keys[first : first + _FETCHED_TOGETHER]]
        reader.fetch(shard, [m[e] for _, m in some for e in ("json", "txt") if e in m])
        for key, members in some:
            try:
                _add_member(part, shard, key, members, reader, parameters)
            except DataError as error:
                part.reject(f"{os.path.basename(shard)}/{key}", error, EVERY)
    reader.close()
    return part.columns(parameters) | {"place_ends": np.array([_ends(shard)], "<i8")}


def _ends(shard: str) -> int:
    return UNKNOWN if files.protocol(shard) else files.ends_crc(shard)


def build_list(path: str, videos: str, parameters: IndexParameters) -> Iterator[Columns]:
    """The rows of a CSV, TSV or JSONL list whose videos lie in a folder, LIST_ROWS at a time."""
    listed = ListFile(path)
    folder = VideoFolder(videos)
    numbers: dict[str, int] = {}
    repeated = _repeated(listed)
    part = _Part()
    for place, row in enumerate(listed.rows()):
        if place and place % LIST_ROWS == 0:
            yield part.columns(parameters)
            part = _Part()
        name = text.storable(row.video)
        if row.video in repeated:
            number = numbers[row.video] = numbers.get(row.video, -1) + 1
            name = f"{name}#{number}"
        try:
            _add_row(part, path, row, name, folder)
        except DataError as error:
            part.reject(name, error, EVERY)
    yield part.columns(parameters)


def _repeated(listed: ListFile) -> set[str]:
    """The videos that several rows name. Only of these the names are kept in memory."""
    keys = np.sort(np.fromiter((_key(row) for row in listed.rows()), "<i8"))
    again = set(keys[1:][keys[1:] == keys[:-1]].tolist())
    counts: dict[str, int] = {}
    for row in listed.rows() if again else ():
        if _key(row) in again:
            counts[row.video] = counts.get(row.video, 0) + 1
    return {video for video, count in counts.items() if count > 1}


def _key(row: ListRow) -> int:
    return sample_key(text.storable(row.video))


def _add_member(
    part: _Part,
    shard: str,
    key: str,
    members: dict[str, Entry],
    reader: ShardReader,
    parameters: IndexParameters,
) -> None:
    label = f"{os.path.basename(shard)}/{key}"
    video = next((members[e] for e in (*VIDEO_EXTENSIONS, MEMBER) if e in members), None)
    if video is None:
        raise MissingFileError(f"{key}: no video among its members {', '.join(members)}")
    record: dict[str, Any] = {}
    if "json" in members:
        data = reader.read(shard, members["json"], key, parameters.json_bytes)
        record = parse_json(data, f"{key}.json")
    if "txt" in members and "caption" not in record and "captions" not in record:
        data = reader.read(shard, members["txt"], key, _TEXT_BYTES)
        record["caption"] = text.decode_utf8(data, f"{key}.txt", CaptionError)
    picked = part.pick(record, key, label)
    identity = record.get("id")
    name = text.storable(str(identity)) if identity else key
    try:
        segment = segment_of_json(record, key)
        source = source_key(record, name, key)
    except DataError as error:
        part.reject(label, error, _mask(picked))
        return
    part.accept(
        name,
        picked,
        segment,
        source=source,
        video=video,
        record=members.get("json") or ({"caption": picked[0][1].texts[0]} if picked else {}),
        annotations=to_columns(record),
        embedding=members.get(EMBEDDING),
    )


def _add_row(part: _Part, path: str, row: ListRow, name: str, folder: VideoFolder) -> None:
    label = f"{path}, line {row.line}"
    given = row_record(row)
    picked = part.pick(given, label, name)
    try:
        record = text.storable(given)
        segment = segment_of_row(row.extra, label)
        video = folder.locate(row.video, row.folder).removeprefix(f"{folder.folder}/")
        source = source_key(record, text.storable(video), label)
    except DataError as error:
        part.reject(name, error, _mask(picked))
        return
    if segment is not None:
        record[SEGMENT] = segment_to_json(segment)
    part.accept(
        name,
        picked,
        segment,
        source=source,
        video=video,
        record=record,
        annotations=to_columns(record),
    )


Picked = list[tuple[int, Captions]]  # caption_grain and the captions


def _mask(picked: Picked) -> int:
    """The grains of a sample with these captions; NONE needs no caption."""
    captioned = sum(EVERY_CAPTIONED if grain == 0 else 1 << (grain - 1) for grain, _ in picked)
    return captioned | 1 << GRAINS.index(NONE)


class _Part:
    """Rows as lists, until they are columns."""

    def __init__(self) -> None:
        self.texts: dict[str, list[bytes]] = {
            name: [] for name in ("id", "path", "record", "caption", "rejected_name", *ANNOTATIONS)
        }
        self.texts |= {"rejected_reason": [], "rejected_message": []}
        self.numbers: dict[str, list[Any]] = {
            name: []
            for name in ("grains", "video_offset", "video_size", "video_crc", "record_offset")
        }
        for name in ("record_size", "record_crc", "source", "segment_start", "segment_end"):
            self.numbers[name] = []
        for name in ("embedding_offset", "embedding_size", "embedding_crc", "caption_weight"):
            self.numbers[name] = []
        self.numbers |= {"caption_grain": [], "nouns_missing": [], "rejected_grains": []}
        self.captions_per_sample: list[int] = []
        self.nouns_per_caption: list[int] = []
        self.nouns: list[int] = []
        self.words: dict[str, int] = {}
        self.repaired = [0] * len(GRAINS)

    def pick(self, record: dict[str, Any], label: str, name: str) -> Picked:
        """The captions of every grain; grains without are rejected under `name`."""
        picked: Picked = []
        if not isinstance(record.get("captions"), dict):
            try:
                picked.append((0, pick_captions(record, CAPTIONED[0], label)))
            except DataError as error:
                self.reject(name, error, EVERY_CAPTIONED)
            return picked
        for place, grain in enumerate(CAPTIONED):
            try:
                picked.append((1 + place, pick_captions(record, grain, label)))
            except DataError as error:
                self.reject(name, error, 1 << place)
        return picked

    def reject(self, name: str, error: DataError, grains: int) -> None:
        skip = Skip.of(name, error)
        self.texts["rejected_name"].append(skip.sample.encode())
        self.texts["rejected_reason"].append(skip.reason.encode())
        self.texts["rejected_message"].append(skip.message.encode())
        self.numbers["rejected_grains"].append(grains)

    def accept(
        self,
        name: str,
        picked: Picked,
        segment: Segment | None,
        *,
        source: int,
        video: Entry | str,
        record: Entry | dict[str, Any],
        annotations: Mapping[str, bytes],
        embedding: Entry | None = None,
    ) -> None:
        """Add a sample: `video` is a member or a path, `record` a member or the json itself."""
        numbers, mask = self.numbers, _mask(picked)
        self.texts["id"].append(name.encode())
        numbers["grains"].append(mask)
        entry = video if isinstance(video, Entry) else Entry(0, UNKNOWN)
        self.texts["path"].append(b"" if isinstance(video, Entry) else os.fsencode(video))
        self._member("video", entry)
        if isinstance(record, Entry):
            self.texts["record"].append(b"")
            self._member("record", record)
        else:
            self.texts["record"].append(json.dumps(record).encode())
            self._member("record", Entry(0, UNKNOWN))
        self._member("embedding", embedding or Entry(0, UNKNOWN))
        for name, value in annotations.items():
            self.texts[name].append(value)
        start, end = (np.nan, np.nan) if segment is None else segment
        numbers["source"].append(source)
        numbers["segment_start"].append(start)
        numbers["segment_end"].append(end)
        self.captions_per_sample.append(sum(len(found.texts) for _, found in picked))
        for grain, found in picked:
            for place in range(len(CAPTIONED)):
                if grain in (0, 1 + place):
                    self.repaired[place] += found.repaired
            weights = found.weights or (np.nan,) * len(found.texts)
            for caption, nouns, weight in zip(found.texts, found.nouns, weights, strict=True):
                self.texts["caption"].append(caption.encode())
                numbers["caption_weight"].append(weight)
                numbers["caption_grain"].append(grain)
                numbers["nouns_missing"].append(nouns is None)
                self.nouns_per_caption.append(len(nouns or ()))
                self.nouns += [self.words.setdefault(n, len(self.words)) for n in nouns or ()]

    def _member(self, name: str, entry: Entry) -> None:
        self.numbers[f"{name}_offset"].append(entry.offset)
        self.numbers[f"{name}_size"].append(entry.size)
        crc = UNKNOWN if entry.crc32 is None else entry.crc32
        self.numbers[f"{name}_crc"].append(crc)

    def columns(self, parameters: IndexParameters) -> Columns:
        """The part as columns, with nouns where the parameters say so."""
        columns = {
            name: np.array(values, DTYPES.get(name, "<i8")) for name, values in self.numbers.items()
        }
        for name, values in self.texts.items():
            columns[f"{name}_start"], columns[f"{name}_text"] = text_arrays(values)
        columns["first_caption"] = starts_of(self.captions_per_sample)
        columns["first_noun"] = starts_of(self.nouns_per_caption)
        columns["noun"] = np.array(self.nouns, "<u4")
        words = [word.encode() for word in self.words]
        columns["word_start"], columns["word_text"] = text_arrays(words)
        columns["repaired"] = np.array(self.repaired, "<i8")
        return with_nouns(columns, parameters)


def with_nouns(columns: Columns, parameters: IndexParameters) -> Columns:
    """A part that was built without nouns, with those that the parameters ask for."""
    if parameters.nouns is None:
        return columns
    return find_nouns(columns, parameters.nouns, build_extractor(parameters.nouns))
