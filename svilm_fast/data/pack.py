"""Packing: a list of videos and captions becomes checked shards with nouns."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svilm_fast.core.files import write_atomically
from svilm_fast.core.machine import usable_cores
from svilm_fast.core.text import counted
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode_process import end_idle_processes
from svilm_fast.data.errors import MissingFileError
from svilm_fast.data.lists import VideoFolder, extension_of, is_list
from svilm_fast.data.nouns import build_extractor
from svilm_fast.data.offline.engines import OfflineEngine, local_workers
from svilm_fast.data.offline.outputs import check_shard_folder
from svilm_fast.data.offline.work import do_work
from svilm_fast.data.pack_plan import Item, items_of_folder, items_of_list, shard_units
from svilm_fast.data.pack_shard import PackSettings, pack_shard
from svilm_fast.data.precut import Precut
from svilm_fast.data.shards import INDEX_SUFFIX
from svilm_fast.data.skips import Skip, nothing_left, refused_lines

_REPORT = "pack_report.json"
_MANIFEST = "pack_manifest.jsonl"
_MOST_THREADS = 8
_WORTH_A_PROCESS = 100  # videos; the start of a process takes as long as the check of dozens


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
    source_bytes: int = 0  # of the videos that were cut; 0 where they were copied

    def add(self, shard: str, done: dict[str, Any]) -> None:
        """Count what `pack_shard` returned for a shard."""
        for name, count in done["counts"].items():
            setattr(self, name, getattr(self, name) + count)
        if done["counts"].get("written"):
            self.shards.append(shard)
        self.refused += [Skip(**skip) for skip in done["refused"]]
        self.notes += Counter(done["notes"])

    def lines(self, examples: int = 20) -> list[str]:
        """The report as text: a summary, counts per reason, the first refused samples."""
        text = [
            f"packed {counted(self.written, 'clip')} ({counted(self.captions, 'caption')}, "
            f"{counted(self.frames, 'frame')}, {self.video_bytes / 1e6:.1f} MB) into "
            f"{counted(len(self.shards), 'shard')}; {counted(self.without_nouns, 'caption')} "
            f"without nouns; refused {len(self.refused)}"
        ]
        if self.source_bytes:
            text.append(
                f"  cut: {self.source_bytes / 1e6:.1f} MB of videos before, "
                f"{self.video_bytes / 1e6:.1f} MB after"
            )
        if self.passed_over:
            kinds = Counter(f".{extension_of(name)}" for name in self.passed_over).most_common()
            text.append(
                f"  skipped {counted(len(self.passed_over), 'file')} without a video extension ("
                + ", ".join(f"{count} x {kind}" for kind, count in kinds[:8])
                + f"), for example {', '.join(self.passed_over[:3])}; all are in pack_report.json"
            )
        text += [f"  note: {count} x {note}" for note, count in sorted(self.notes.items())]
        return text + refused_lines(self.refused, _REPORT, examples)


def pack(
    source: str,
    out_dir: str | Path,
    *,
    videos: str | None = None,
    config: DataConfig | None = None,
    shard_samples: int = 1000,
    prefix: str = "shard",
    precut: Precut | None = None,
    engine: OfflineEngine = OfflineEngine.LOCAL,
    workers: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    finished: Callable[[Path], None] | None = None,
) -> PackReport:
    """Write shards from a CSV or JSONL list beside a folder of videos, or from such a folder.

    A folder, or a folder below it, holds `name.mp4` with a caption in `name.txt` or `name.json`;
    other files are counted in the report. Every video is decoded
    from its first to its last frame; what fails is refused with its reason and left out, and the
    reasons are in the report and in `out_dir/pack_report.json`. Several captions of one video
    become one sample with a list; so do several names of one file. Segments (`start` and `end` of
    a list) are samples of their own, each with a copy of the video. Video bytes are copied as they
    are, unless `precut` is given.

    Packing that was stopped continues when it is started again with the same arguments: shards
    that `out_dir/pack_manifest.jsonl` lists and that are intact are not made again. Shards,
    indexes and report are the same bytes for every engine and any number of workers and threads.

    Args:
        source: list file or folder.
        out_dir: new or empty folder for the shards, or that of the same packing.
        videos: folder of the videos that the list names (default: the list's own).
        config: limits, decoder and noun settings.
        shard_samples: most videos of a shard; one of large videos ends after about a GiB of them.
        precut: cut videos and segments to re-encoded clips, samples of their own.
        workers: shards at a time (default: local, one per core and 100 videos).
        threads: decoders at work on a shard (default: cores per worker, at most 8; Ray: 1).
        progress: a bar on the terminal (default: where standard error is one).
        finished: called with `out_dir` when everything is written, for example to index the shards.

    Raises:
        DataError: the list is unreadable, `out_dir` holds shards or belongs to a packing with other
            arguments (the message names them), or nothing is left to pack.
    """
    config = config or DataConfig()
    out = Path(out_dir)
    check_shard_folder(out, _MANIFEST, _REPORT, '"without_nouns"')
    if not is_list(source) and not os.path.isdir(source):
        raise MissingFileError(f"{source!r} is neither a .csv, .tsv or .jsonl list nor a folder")
    folder = VideoFolder(videos or (os.path.dirname(source) or "." if is_list(source) else source))
    items: list[Item]
    items, refused, others = (
        (items_of_list(source, folder), [], [])
        if is_list(source)
        else items_of_folder(source, folder)
    )
    build_extractor(config.nouns)  # raises now where its package is not installed
    units = shard_units(items, prefix, shard_samples)
    if workers is None and engine is OfflineEngine.LOCAL:
        workers = min(usable_cores(), -(-len(items) // _WORTH_A_PROCESS))
    if threads is None:
        at_once = local_workers(len(units), workers)
        local = max(1, min(_MOST_THREADS, usable_cores() // at_once))
        threads = local if engine is OfflineEngine.LOCAL else 1
    out.mkdir(parents=True, exist_ok=True)
    try:
        reports = do_work(
            "pack",
            pack_shard,
            units,
            PackSettings(config, precut, threads),
            out,
            parameters={
                "shard_samples": shard_samples,
                "prefix": prefix,
                "precut": precut and precut.parameters(),
                "captions": config.captions,
                "nouns": config.nouns.model_dump(mode="json"),
                "limits": config.limits.model_dump(mode="json"),
            },
            engine=engine,
            workers=workers,
            cpus=threads,
            progress=progress,
        )
    finally:
        end_idle_processes()
    report = PackReport(refused=refused, passed_over=_foreign(others, source, out, prefix))
    for unit, done in zip(units, reports, strict=True):
        report.add(unit.name, done)
    if precut is None:
        report.source_bytes = 0
    write_atomically(out / _REPORT, json.dumps(_as_json(report), indent=1).encode())
    if not report.written:
        raise nothing_left(source, "no sample could be packed", report.refused)
    if finished is not None:
        finished(out)
    return report


def _foreign(names: list[str], source: str, out: Path, prefix: str) -> list[str]:
    """`names` of files in the folder `source` without those that packing has written to `out`."""
    inside = os.path.relpath(os.path.realpath(out), os.path.realpath(source)).replace(os.sep, "/")
    place = "" if inside == "." else f"{re.escape(inside)}/"
    own = rf"{re.escape(prefix)}-\d{{6,}}\.tar({re.escape(INDEX_SUFFIX)})?"
    index = r"\.svilm-index-[0-9a-f]+\.bin"
    written = re.compile(rf"{place}({own}|{index}|{re.escape(_REPORT)}|{re.escape(_MANIFEST)})")
    return [name for name in names if not written.fullmatch(name)]


def _as_json(report: PackReport) -> dict[str, Any]:
    values = {k: v for k, v in vars(report).items() if k != "refused"}
    return {**values, "refused": [vars(skip) for skip in report.refused]}
