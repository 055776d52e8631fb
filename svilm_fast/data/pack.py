"""Packing: a list of videos and captions becomes checked shards with nouns."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from svilm_fast.core.console import Console
from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.messages import single_line
from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.data import files
from svilm_fast.data.config import DataConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS, sniff
from svilm_fast.data.decode import last_frame
from svilm_fast.data.decode_process import decode_limited, end_idle_processes
from svilm_fast.data.describe import Description, describe, key_of
from svilm_fast.data.errors import (
    CaptionError,
    DataError,
    MissingFileError,
    ShardError,
    VideoError,
)
from svilm_fast.data.lists import (
    ListRow,
    VideoFolder,
    extension_of,
    has_video_extension,
    is_list,
    read_list,
)
from svilm_fast.data.nouns import NounExtractor, build_extractor
from svilm_fast.data.segments import InSegment, Segment, part, segment_of_row
from svilm_fast.data.shards import ShardWriter, parse_json
from svilm_fast.data.skips import Skip
from svilm_fast.data.text import decode_utf8

_CHECK_SIDE = 32  # decoded for the check alone
_CAPTION_BYTES = 1 << 20
_REPORT = "pack_report.json"


@dataclass
class PackReport:
    """What `pack` wrote and what it refused."""

    written: int = 0
    captions: int = 0
    without_nouns: int = 0
    frames: int = 0
    video_bytes: int = 0
    shards: list[str] = field(default_factory=list)
    refused: list[Skip] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # files of a folder that are no videos
    notes: Counter[str] = field(default_factory=Counter)  # what was repaired and kept

    def lines(self, examples: int = 20) -> list[str]:
        """The report as text: a summary, counts per reason, the first refused samples."""
        text = [
            f"packed {counted(self.written, 'clip')} ({counted(self.captions, 'caption')}, "
            f"{counted(self.frames, 'frame')}, {self.video_bytes / 1e6:.1f} MB) into "
            f"{counted(len(self.shards), 'shard')}; {counted(self.without_nouns, 'caption')} "
            f"without nouns; refused {len(self.refused)}"
        ]
        if self.passed_over:
            kinds = Counter(f".{extension_of(name)}" for name in self.passed_over).most_common()
            text.append(
                f"  skipped {counted(len(self.passed_over), 'file')} without a video extension ("
                + ", ".join(f"{count} x {kind}" for kind, count in kinds[:8])
                + f"), for example {', '.join(self.passed_over[:3])}; all are in pack_report.json"
            )
        text += [f"  note: {count} x {note}" for note, count in sorted(self.notes.items())]
        counts = Counter(skip.reason for skip in self.refused)
        text += [f"  {count} x {reason}" for reason, count in counts.most_common()]
        text += [
            f"  refused {printable(s.sample, lines=False)}: {s.message}"
            for s in self.refused[:examples]
        ]
        if len(self.refused) > examples:
            text.append(f"  ... and {len(self.refused) - examples} more in pack_report.json")
        return text


@dataclass
class _Item:
    """A video, or a segment of one, with all its captions; `error`: why it is refused."""

    name: str
    rows: list[ListRow]
    path: str = ""
    segment: Segment | None = None
    error: DataError | None = None

    @property
    def label(self) -> str:
        """The name in messages."""
        if self.segment is None:
            return self.name
        return f"{self.name} from {self.segment[0]:g} s to {self.segment[1]:g} s"


@dataclass
class _Checked:
    item: _Item
    members: dict[str, bytes] = field(default_factory=dict)
    description: Description | None = None
    error: DataError | None = None


def pack(
    source: str,
    out_dir: str | Path,
    *,
    videos: str | None = None,
    config: DataConfig | None = None,
    shard_samples: int = 1000,
    prefix: str = "shard",
    threads: int | None = None,
    progress: bool | None = None,
) -> PackReport:
    """Write shards from a CSV or JSONL list beside a folder of videos, or from such a folder.

    A folder, or a folder below it, holds `name.mp4` with a caption in `name.txt` or `name.json`;
    other files are counted in the report. Every video is decoded
    from its first to its last frame; what fails is refused with its reason and left out, and the
    reasons are in the report and in `out_dir/pack_report.json`. Several captions of one video
    become one sample with a list; so do several names of one file. Segments (`start` and `end` of
    a list) are samples of their own, each with a copy of the video. Video bytes are copied as they
    are. A packing that fails deletes the shards that it has written.

    Args:
        source: list file or folder.
        out_dir: new or empty folder for the shards.
        videos: folder of the videos that the list names (default: the list's own).
        config: limits, decoder and noun settings.
        threads: decoders at work (default: one per core, at most 8).
        progress: a bar on the terminal (default: where standard error is one).

    Raises:
        DataError: the list is unreadable, `out_dir` holds shards, or nothing is left to pack.
    """
    config = config or DataConfig()
    out = Path(out_dir)
    if any(out.glob("*.tar")):
        unfinished = "" if out.joinpath(_REPORT).exists() else ", of a packing that was killed"
        raise ShardError(
            f"{str(out)!r} already holds shards{unfinished}: choose another folder or empty it"
        )
    if not is_list(source) and not os.path.isdir(source):
        raise MissingFileError(f"{source!r} is neither a .csv, .tsv or .jsonl list nor a folder")
    folder = VideoFolder(videos or (os.path.dirname(source) or "." if is_list(source) else source))
    items, refused, others = (
        (_items_of_list(source, folder), [], [])
        if is_list(source)
        else _items_of_folder(source, folder)
    )
    check_replaceable(out / _REPORT, '"without_nouns"')
    report = PackReport(refused=refused, passed_over=others)
    extract = build_extractor(config.nouns)
    shown = sys.stderr.isatty() if progress is None else progress
    used: set[str] = set()
    writer = ShardWriter(out, prefix, max_samples=shard_samples)
    try:
        with writer, Progress(console=Console(stderr=True), disable=not shown) as bar:
            task = bar.add_task("packing", total=len(items))
            for checked in _checked(items, config, extract, threads):
                bar.advance(task)
                _write(writer, checked, report, used)
    except BaseException:
        writer.discard()
        raise
    report.shards = [path.name for path in writer.paths]
    out.joinpath(_REPORT).write_text(json.dumps(_as_json(report), indent=1))
    if not report.written:
        example = f"; {refused[0].sample}: {refused[0].message}" if refused else ""
        raise DataError(f"{source!r}: no sample could be packed{example}")
    return report


def _as_json(report: PackReport) -> dict[str, Any]:
    values = {k: v for k, v in vars(report).items() if k != "refused"}
    return {**values, "refused": [vars(skip) for skip in report.refused]}


def _items_of_list(source: str, folder: VideoFolder) -> list[_Item]:
    """The videos and segments that a list names, each with all of its rows."""
    items: dict[Any, _Item] = {}
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
            items.setdefault(name, _Item(row.video, [row], error=place))
            continue
        try:
            segment = segment_of_row(row.extra, f"line {row.line}")
        except DataError as error:
            items[row.line] = _Item(row.video, [row], error=error)
            continue
        # Keys do not tell where the folder lies.
        whole = row.video.startswith("/") or "://" in row.video
        short = place.removeprefix(f"{folder.folder}/") if whole else row.video
        item = items.setdefault((place, segment), _Item(short, [], place, segment))
        item.rows.append(row)
    return list(items.values())


def _items_of_folder(source: str, folder: VideoFolder) -> tuple[list[_Item], list[Skip], list[str]]:
    """Videos with their captions, videos that are refused, and files that are neither."""
    items: dict[str, _Item] = {}
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
        items.setdefault(path, _Item(name, [], path)).rows.append(ListRow(name, None, 0, record))
    stems = {name.rpartition(".")[0] for name in videos}
    captions = {f"{stem}.{kind}" for stem in stems for kind in ("json", "txt")}
    return list(items.values()), refused, sorted(others - captions)


def _checked(
    items: Iterable[_Item],
    config: DataConfig,
    extract: NounExtractor,
    threads: int | None,
) -> Iterator[_Checked]:
    """Check items in parallel, in order; few are in memory at once."""
    workers = threads or min(8, os.cpu_count() or 1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            waiting = []
            for item in items:
                waiting.append(pool.submit(_check, item, config, extract))
                if len(waiting) >= 2 * workers:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
    finally:
        end_idle_processes()


def _check(item: _Item, config: DataConfig, extract: NounExtractor) -> _Checked:
    try:
        if item.error is not None:
            raise item.error
        about = describe(item.rows, item.segment, config, extract, item.label)
        data = files.read_bytes(item.path, config.limits.video_bytes)
        choose = InSegment(last_frame, item.segment)
        clip = decode_limited(data, choose, short_side=_CHECK_SIDE, limits=config.limits)
        about.record |= {
            "fps": clip.fps,
            "num_frames": part(clip.timeline, item.segment)[1].total,
            "width": clip.source_size[0],
            "height": clip.source_size[1],
        }
    except Exception as error:
        return _Checked(item, error=_as_data_error(error))
    return _Checked(item, {_member_extension(item.path, data): data}, about)


def _as_data_error(error: Exception) -> DataError:
    """The reason of a refusal: one strange file among a million must not end the packing."""
    if isinstance(error, DataError):
        return error
    return VideoError(f"{type(error).__name__}: {single_line(error)}")


def _member_extension(path: str, data: bytes) -> str:
    """The extension under which a shard holds a video: its file's, or one of its container."""
    extension = extension_of(path)
    container = sniff(data)
    if extension in VIDEO_EXTENSIONS or container is None:
        return extension
    return container.extensions[0]


def _write(writer: ShardWriter, checked: _Checked, report: PackReport, used: set[str]) -> None:
    item, about = checked.item, checked.description
    try:
        if checked.error is not None or about is None:
            raise checked.error or VideoError("not checked")
        key = key_of(item.name, item.segment, used)
        record = {"id": key, **about.record}
        record["id"] = str(record["id"])
        data = json.dumps(record, ensure_ascii=False).encode()
        writer.write(key, {**checked.members, "json": data})
    except OSError:  # the disk, not the sample
        raise
    except Exception as error:
        report.refused.append(Skip.of(item.label, _as_data_error(error)))
        return
    report.written += 1
    report.captions += about.captions
    report.without_nouns += about.without_nouns
    report.notes += about.notes
    report.frames += record["num_frames"]
    report.video_bytes += sum(len(data) for data in checked.members.values())
