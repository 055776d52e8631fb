"""The packing of one shard: its videos are checked or cut, described and written."""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from svilm_fast.data import files, text
from svilm_fast.data.config import DataConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS, sniff
from svilm_fast.data.decode import last_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.describe import Description, describe
from svilm_fast.data.lists import extension_of
from svilm_fast.data.nouns import NounExtractor, build_extractor
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.pack_plan import Item, as_data_error
from svilm_fast.data.precut import Precut, cut_video
from svilm_fast.data.precut_record import record_of_clip
from svilm_fast.data.segments import InSegment, part
from svilm_fast.data.shards import INDEX_SUFFIX, ShardFile
from svilm_fast.data.skips import Skip
from svilm_fast.data.source_ids import KEY as SOURCE_ID

_CHECK_SIDE = 32  # decoded for the check alone
# TextBlob loads its lexicon when it is first used; a second thread would tag with half of it.
_describing = threading.Lock()


@dataclass(frozen=True)
class PackSettings:
    """What every shard is packed with; `threads` decode at a time and change no byte."""

    config: DataConfig
    precut: Precut | None
    threads: int


@dataclass
class _Sample:
    key: str
    members: dict[str, bytes]
    record: dict[str, Any]


@dataclass
class _Checked:
    """The samples of an item, or why there are none."""

    item: Item
    samples: list[_Sample] = field(default_factory=list)
    about: Description | None = None
    source_bytes: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    refused: Skip | None = None


def pack_shard(
    name: str, items: Sequence[Item], settings: PackSettings, out: Outputs
) -> dict[str, Any]:
    """Write the shard `name` with its index; without a sample there is no file.

    Returns what `PackReport.add` reads.
    """
    extract = build_extractor(settings.config.nouns)
    counts: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    refused: list[Skip] = []
    shard: ShardFile | None = None
    for checked in _checked(items, settings, extract):
        if checked.refused is not None or checked.about is None:
            refused.append(checked.refused or Skip(checked.item.label, "data", "not checked"))
            continue
        for sample in checked.samples:
            if shard is None:
                index = out.path(name + INDEX_SUFFIX)
                shard = ShardFile(out.path(name))
            data = json.dumps(sample.record, ensure_ascii=False).encode()
            shard.add(sample.key, {**sample.members, "json": data})
            counts["written"] += 1
            counts["captions"] += checked.about.captions
            counts["without_nouns"] += checked.about.without_nouns
            counts["frames"] += sample.record["num_frames"]
            counts["video_bytes"] += sum(map(len, sample.members.values()))
        counts["source_bytes"] += checked.source_bytes
        notes += checked.about.notes + checked.notes
    if shard is not None:
        index.write_text(shard.close())
    return {"counts": dict(counts), "notes": dict(notes), "refused": [vars(s) for s in refused]}


def _checked(
    items: Sequence[Item], settings: PackSettings, extract: NounExtractor
) -> Iterator[_Checked]:
    """Check items in parallel, in order; few are in memory at once."""
    waiting: deque[Future[_Checked]] = deque()
    with ThreadPoolExecutor(settings.threads) as pool:
        for item in items:
            waiting.append(pool.submit(_check, item, settings, extract))
            if len(waiting) >= 2 * settings.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check(item: Item, settings: PackSettings, extract: NounExtractor) -> _Checked:
    config = settings.config
    try:
        if item.error is not None:
            raise item.error
        with _describing:
            about = describe(item.rows, item.segment, config, extract, item.label)
        data = files.read_bytes(item.path, config.limits.video_bytes)
        record = {"id": item.key, **about.record}
        if item.segment is not None:  # of what else it is a part is lost in a shard
            record.setdefault(SOURCE_ID, text.storable(item.name))
        record["id"] = str(record["id"])
        checked = _Checked(item, about=about, source_bytes=len(data))
        if settings.precut is None:
            checked.samples = [_whole(item, data, record, config)]
        else:
            _cut(checked, data, record, settings.precut, config)
        for sample in checked.samples:
            json.dumps(sample.record)  # raises here, for this item alone
    except Exception as error:
        return _Checked(item, refused=Skip.of(item.label, as_data_error(error)))
    return checked


def _whole(item: Item, data: bytes, record: dict[str, Any], config: DataConfig) -> _Sample:
    choose = InSegment(last_frame, item.segment)
    clip = decode_limited(data, choose, short_side=_CHECK_SIDE, limits=config.limits)
    record |= {
        "fps": clip.fps,
        "num_frames": part(clip.timeline, item.segment)[1].total,
        "width": clip.source_size[0],
        "height": clip.source_size[1],
    }
    return _Sample(item.key, {_member_extension(item.path, data): data}, record)


def _cut(
    checked: _Checked, data: bytes, record: dict[str, Any], precut: Precut, config: DataConfig
) -> None:
    clips, dropped_s = cut_video(data, checked.item.segment, precut, config.limits)
    for number, clip in enumerate(clips):
        suffix = f"_c{number:03d}"
        described = record_of_clip(record, clip)
        described["id"] = f"{record['id']}{suffix}"
        checked.notes += described.pop("notes")
        checked.samples.append(
            _Sample(f"{checked.item.key}{suffix}", {"mp4": clip.data}, described)
        )
    if dropped_s:
        checked.notes["remainder shorter than half a clip left out"] += 1


def _member_extension(path: str, data: bytes) -> str:
    """The extension under which a shard holds a video: its file's, or one of its container."""
    extension = extension_of(path)
    container = sniff(data)
    if extension in VIDEO_EXTENSIONS or container is None:
        return extension
    return container.extensions[0]
