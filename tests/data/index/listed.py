"""The samples of a split as objects in a list: the plain reader that an index must agree with.

Every json is read and every sample is kept, as the package did before it had an index.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from svilm_fast.data import files, text
from svilm_fast.data.captions import REPAIRED, pick_captions, row_record
from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import CaptionError, DataError, MissingFileError
from svilm_fast.data.lists import VideoFolder, is_list, read_list
from svilm_fast.data.sample_files import StoredFile
from svilm_fast.data.segments import KEY as SEGMENT
from svilm_fast.data.segments import Segment, segment_of_json, segment_of_row, segment_to_json
from svilm_fast.data.shards import Entry, ShardReader, find_shards, load_index, parse_json
from svilm_fast.data.skips import Skip

_TEXT_BYTES = 1 << 16


@dataclass(slots=True)
class Sample:
    id: str
    captions: tuple[str, ...]
    nouns: tuple[tuple[str, ...] | None, ...]
    video: StoredFile
    description: StoredFile | dict[str, Any] | None
    segment: Segment | None = None


class ListedTable:
    """Samples in a fixed order, with what was refused while listing them.

    Ids that occur again get `~2`, `~3` and so on. `notes` counts what was repaired and kept.
    """

    def __init__(
        self,
        samples: list[Sample],
        rejected: list[Skip],
        limits: LimitsConfig,
        notes: Counter[str] | None = None,
    ) -> None:
        used: set[str] = set()
        for sample in samples:  # shards of several sources often count from zero
            name, number = sample.id, 1
            while sample.id in used:
                number += 1
                sample.id = f"{name}~{number}"
            used.add(sample.id)
        self.samples, self.rejected, self.limits = samples, rejected, limits
        self.notes = notes or Counter()
        self._reader = ShardReader()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """Changes when ids, captions, segments or their order change."""
        digest = hashlib.sha256()
        for sample in self.samples:
            parts = [sample.id, *sample.captions]
            if sample.segment is not None:
                parts.append(repr(sample.segment))
            digest.update("\x1f".join(parts).encode() + b"\x1e")
        return digest.hexdigest()[:32]

    @functools.cached_property
    def contents(self) -> str:
        """Changes when a video is replaced under its name: sizes and checksums of all of them.

        A member of an indexed shard has a CRC-32 there. Of a local file the size and the CRC-32 of
        its two ends are taken, so that large files cost two small reads. Other videos count by name
        alone.
        """
        digest = hashlib.sha256()
        for sample in self.samples:
            path, entry = sample.video.path, sample.video.entry
            if entry is not None:
                found = f"{entry.size} {entry.crc32}"
            else:
                try:
                    found = files.ends_checksum(path) if os.path.isfile(path) else ""
                except (OSError, DataError):
                    found = ""  # reading it for training will say why
            digest.update(f"{sample.id}\x1f{found}\x1e".encode(errors="surrogatepass"))
        return digest.hexdigest()[:32]

    def read_video(self, index: int) -> bytes:
        """The bytes of a sample's video file."""
        sample = self.samples[index]
        return self._read(sample.video, sample.id, self.limits.video_bytes)

    def read_metadata(self, index: int) -> dict[str, Any]:
        """A sample's json."""
        sample = self.samples[index]
        if not isinstance(sample.description, StoredFile):
            return dict(sample.description or {})
        data = self._read(sample.description, sample.id, self.limits.json_bytes)
        return text.storable(parse_json(data, sample.id))

    def _read(self, place: StoredFile, label: str, limit: int) -> bytes:
        if place.entry is None:
            return files.read_bytes(place.path, limit)
        return self._reader.read(place.path, place.entry, label, limit)


def list_split(config: DataConfig, split: str) -> ListedTable:
    """The samples of `config.train`, `.val` or `.test`. Raises DataError when there are none."""
    where = getattr(config, split)
    if where is None:
        raise MissingFileError(
            f"data.{split} is not set: give a folder of shards or a CSV or JSONL list"
        )
    samples: list[Sample] = []
    rejected: list[Skip] = []
    notes: Counter[str] = Counter()
    for path in [where] if isinstance(where, str) else where:
        read = _from_list if is_list(path) else _from_shards
        try:
            found, refused = read(path, config, notes)
        except DataError as error:
            raise type(error)(f"data.{split}: {error}") from error
        samples += found
        rejected += refused
    if not samples:
        example = f"; for example {rejected[0].sample}: {rejected[0].message}" if rejected else ""
        raise DataError(f"data.{split}={where!r} holds no usable sample{example}")
    return ListedTable(samples, rejected, config.limits, notes)


def _from_shards(
    path: str, config: DataConfig, notes: Counter[str]
) -> tuple[list[Sample], list[Skip]]:
    shards = find_shards(path)
    reader = ShardReader()
    samples: list[Sample] = []
    rejected: list[Skip] = []
    for shard in shards:
        for key, members in load_index(shard, config.limits.shard_members).samples.items():
            try:
                sample = _shard_sample(shard, key, members, reader, config, notes)
            except DataError as error:
                rejected.append(Skip.of(f"{os.path.basename(shard)}/{key}", error))
                continue
            samples.append(sample)
    reader.close()
    return samples, rejected


def _shard_sample(
    shard: str,
    key: str,
    members: dict[str, Entry],
    reader: ShardReader,
    config: DataConfig,
    notes: Counter[str],
) -> Sample:
    video = next((members[e] for e in VIDEO_EXTENSIONS if e in members), None)
    if video is None:
        raise MissingFileError(f"{key}: no video among its members {', '.join(members)}")
    record: dict[str, Any] = {}
    if "json" in members:
        data = reader.read(shard, members["json"], key, config.limits.json_bytes)
        record = parse_json(data, f"{key}.json")
    if "txt" in members and "caption" not in record and "captions" not in record:
        data = reader.read(shard, members["txt"], key, _TEXT_BYTES)
        record["caption"] = text.decode_utf8(data, f"{key}.txt", CaptionError)
    captions = pick_captions(record, config.captions, key)
    segment = segment_of_json(record, key)
    notes.update({REPAIRED: captions.repaired} if captions.repaired else {})
    identity = record.get("id")
    return Sample(
        text.storable(str(identity)) if identity else key,
        captions.texts,
        captions.nouns,
        StoredFile(shard, video),
        StoredFile(shard, members["json"]) if "json" in members else {"caption": captions.texts[0]},
        segment,
    )


def _from_list(
    path: str, config: DataConfig, notes: Counter[str]
) -> tuple[list[Sample], list[Skip]]:
    rows = read_list(path)
    folder = VideoFolder(config.videos or os.path.dirname(path) or ".")
    repeats = Counter(row.video for row in rows)
    seen: Counter[str] = Counter()
    samples: list[Sample] = []
    rejected: list[Skip] = []
    for row in rows:
        name = text.storable(row.video)
        if repeats[row.video] > 1:
            name = f"{name}#{seen[row.video]}"
            seen[row.video] += 1
        try:
            record = row_record(row)
            captions = pick_captions(record, config.captions, f"{path}, line {row.line}")
            record = text.storable(record)
            segment = segment_of_row(row.extra, f"{path}, line {row.line}")
            video = StoredFile(folder.locate(row.video, row.folder))
        except DataError as error:
            rejected.append(Skip.of(name, error))
            continue
        notes.update({REPAIRED: captions.repaired} if captions.repaired else {})
        if segment is not None:
            record[SEGMENT] = segment_to_json(segment)
        samples.append(Sample(name, captions.texts, captions.nouns, video, record, segment))
    return samples, rejected
