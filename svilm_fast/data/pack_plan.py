"""What is to be packed: the samples that a list or a folder names, divided into shards.

Keys and shards are decided here, before any video is opened: they do not depend on the order in
which shards are made, nor on what is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from svilm_fast.core.messages import single_line
from svilm_fast.data import files
from svilm_fast.data.describe import key_of
from svilm_fast.data.errors import CaptionError, DataError, VideoError
from svilm_fast.data.lists import ListRow, VideoFolder, has_video_extension, read_list
from svilm_fast.data.offline.work import Unit
from svilm_fast.data.segments import Segment, segment_of_row, segment_to_json
from svilm_fast.data.shards import MAX_SHARD_BYTES, parse_json, shard_name
from svilm_fast.data.skips import Skip
from svilm_fast.data.text import decode_utf8

_CAPTION_BYTES = 1 << 20


@dataclass
class Item:
    """A video, or a segment of one, with all its captions; `error`: why it is refused."""

    name: str
    rows: list[ListRow]
    path: str = ""
    segment: Segment | None = None
    error: DataError | None = None
    key: str = ""
    size: int = 0  # bytes of a local video

    @property
    def label(self) -> str:
        """The name in messages."""
        if self.segment is None:
            return self.name
        return f"{self.name} from {self.segment[0]:g} s to {self.segment[1]:g} s"

    def description(self) -> list[Any]:
        """What decides the packed sample, as JSON: the folder of the videos is not part of it."""
        rows = [[row.video, row.caption, row.extra] for row in self.rows]
        segment = None if self.segment is None else segment_to_json(self.segment)
        error = None if self.error is None else type(self.error).__name__
        return [self.key, self.name, rows, segment, self.size, error]


def as_data_error(error: Exception) -> DataError:
    """The reason of a refusal: one strange file among a million must not end the packing."""
    if isinstance(error, DataError):
        return error
    return VideoError(f"{type(error).__name__}: {single_line(error)}")


def shard_units(items: Sequence[Item], prefix: str, shard_samples: int) -> list[Unit]:
    """Divide items into shards of at most `shard_samples`, and of about a GiB of videos."""
    return [
        Unit(
            shard_name(prefix, number),
            [replace(item, path=_absolute(item.path)) for item in shard],
            [item.description() for item in shard],
            len(shard),
        )
        for number, shard in enumerate(_divided(_with_keys(items), shard_samples))
    ]


def _divided(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    shard: list[Item] = []
    size = 0
    for item in items:
        shard.append(item)
        size += item.size
        if len(shard) >= most or size >= MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _with_keys(items: Sequence[Item]) -> list[Item]:
    used: set[str] = set()
    done = []
    for item in items:
        if item.error is not None:
            done.append(item)
            continue
        try:
            size = 0
            if item.path and files.protocol(item.path) is None:
                size = os.stat(item.path).st_size
            done.append(replace(item, key=key_of(item.name, item.segment, used), size=size))
        except Exception as error:
            done.append(replace(item, error=as_data_error(error)))
    return done


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and files.protocol(path) is None else path


def items_of_list(source: str, folder: VideoFolder) -> list[Item]:
    """The videos and segments that a list names, each with all of its rows."""
    items: dict[Any, Item] = {}
    places: dict[tuple[str, str | None], str | DataError] = {}
    for row in read_list(source):
        name = (row.video, row.folder)
        if name not in places:
            try:
                places[name] = folder.locate(*name)
            except DataError as error:
                places[name] = error
        place = places[name]
        if isinstance(place, DataError):
            items.setdefault(name, Item(row.video, [row], error=place))
            continue
        try:
            segment = segment_of_row(row.extra, f"line {row.line}")
        except DataError as error:
            items[row.line] = Item(row.video, [row], error=error)
            continue
        # Keys do not tell where the folder lies.
        whole = row.video.startswith("/") or "://" in row.video
        short = place.removeprefix(f"{folder.folder}/") if whole else row.video
        item = items.setdefault((place, segment), Item(short, [], place, segment))
        item.rows.append(row)
    return list(items.values())


def items_of_folder(source: str, folder: VideoFolder) -> tuple[list[Item], list[Skip], list[str]]:
    """Videos with their captions, videos that are refused, and files that are neither."""
    items: dict[str, Item] = {}
    refused = []
    names = files.tree(source)
    videos = [name for name in names if has_video_extension(name)]
    others = set(names) - set(videos)
    for name in videos:
        stem = name.rpartition(".")[0]
        try:
            record: dict[str, Any] = {}
            if f"{stem}.json" in others:
                data = files.read_bytes(f"{source}/{stem}.json", _CAPTION_BYTES)
                record = parse_json(data, f"{stem}.json")
            elif f"{stem}.txt" in others:
                data = files.read_bytes(f"{source}/{stem}.txt", _CAPTION_BYTES)
                record = {"caption": decode_utf8(data, f"{stem}.txt", CaptionError)}
            path = folder.locate(name)
        except DataError as error:
            refused.append(Skip.of(name, error))
            continue
        items.setdefault(path, Item(name, [], path)).rows.append(ListRow(name, None, 0, record))
    stems = {name.rpartition(".")[0] for name in videos}
    captions = {f"{stem}.{kind}" for stem in stems for kind in ("json", "txt")}
    return list(items.values()), refused, sorted(others - captions)
