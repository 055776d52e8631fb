"""Rows with damaged samples, and rows in which the processes that read samples fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError, SkipBudgetError, WorkerError
from svilm_fast.data.loader import build_loader
from svilm_fast.data.shards import ShardWriter, scan_shard
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig
from tests.faults.samples import FailingRead, a_video, open_folder, refused

GOOD, EACH = 40, 3


def _damage(kind: str, video: bytes) -> dict[str, bytes]:
    return {
        "undecodable video": {"mp4": b"no video at all"},
        "truncated": {"mp4": video[: len(video) // 2]},
        "no frames": {"mp4": b""},
        "bad sample json": {"json": b"{"},
        "a list as json": {"json": b"[1, 2]"},
        "no caption": {"json": b'{"caption": "  "}'},
        "caption of a wrong type": {"json": b'{"caption": 7}'},
        "checksum": {},
    }[kind]


KINDS = (
    "undecodable video",
    "truncated",
    "no frames",
    "bad sample json",
    "a list as json",
    "no caption",
    "caption of a wrong type",
    "checksum",
)


@row(
    15,
    "damaged samples: video, json, caption, payload; a damaged header",
    "counted and reported, budget kept, the same skips after a resume, none lost",
    tries=9,
    short=9,
)
def damaged_samples(rig: Rig, tries: int, seen: Tries) -> None:
    video = a_video(rig)
    for kind in KINDS:
        with seen.one(kind):
            folder = rig.new_folder("damaged")
            bad = {f"s{number:03d}" for number in rig.random.sample(range(GOOD), EACH)}
            _write_shards(folder, video, bad, _damage(kind, video))
            if kind == "checksum":
                _flip_payloads(folder, bad)
            _counted(folder, bad)
    with seen.one("a flipped bit in a header"):
        folder = rig.new_folder("damaged")
        _write_shards(folder, video, set(), {})
        path = sorted(folder.glob("*.tar"))[0]
        for index in folder.glob("*.json"):
            index.unlink()
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(bytes(content))
        refused(lambda: open_folder(folder), DataError)


def _write_shards(folder: Path, video: bytes, bad: set[str], members: dict[str, bytes]) -> None:
    with ShardWriter(folder, max_samples=10) as writer:
        for number in range(GOOD):
            key = f"s{number:03d}"
            caption = json.dumps({"caption": f"clip {number}: a red circle"}).encode()
            whole = {"mp4": video, "json": caption}
            writer.write(key, whole | (members if key in bad else {}))


def _flip_payloads(folder: Path, bad: set[str]) -> None:
    for path in folder.glob("*.tar"):
        for key, members in scan_shard(str(path)).samples.items():
            if key in bad:
                with path.open("r+b") as file:
                    file.seek(members["mp4"].offset + members["mp4"].size // 2)
                    byte = file.read(1)
                    file.seek(-1, 1)
                    file.write(bytes([byte[0] ^ 1]))


def _skipped(dataset: ClipDataset, batches: int, state: dict | None = None) -> tuple[Any, Any]:
    loader = build_loader(dataset.config, dataset, batch_size=4, seed=5, state=state)
    with loader:
        ids = [batch.ids for batch in islice(loader.forever(), batches)]
    return ids, loader


def _counted(folder: Path, bad: set[str]) -> None:
    strict = {"skips": {"fraction": 0.01, "always_allowed": 0}}
    refused(lambda: _skipped(open_folder(folder, train=True, **strict), 20), SkipBudgetError)
    dataset = open_folder(folder, train=True)
    listed = {name.rpartition("/")[2] for name in dataset.report.skipped}
    need(len(dataset) + len(listed) == GOOD, f"{len(dataset)} samples and {len(listed)} refused")
    whole, loader = _skipped(dataset, 20)
    found = {name.rpartition("/")[2] for name in loader.skips.skipped} | listed
    need(found == bad, f"skipped {sorted(found)} instead of {sorted(bad)}")
    first, half = _skipped(dataset, 7)
    rest, again = _skipped(dataset, 13, json.loads(json.dumps(half.state_dict())))
    need(first + rest == whole, "other samples after a resume")
    need(again.skips.skipped == loader.skips.skipped, "other skips after a resume")


@row(
    17,
    "a loader's worker is killed, hangs, or raises",
    "an error within the timeout + 1 s (of an idle machine) that names the samples",
    tries=6,
    short=3,
)
def workers(rig: Rig, tries: int, seen: Tries) -> None:
    timeout = 4.0
    times = []
    for number in range(tries):
        kind = ("kill", "hang", "raise")[number % 3]
        with seen.one(kind):
            settings = {"workers": 1, "prefetch": 1, "timeout_s": timeout}
            folder = rig.new_folder("workers")
            _write_shards(folder, a_video(rig), set(), {})
            dataset = open_folder(folder, train=True, **settings)
            if kind == "raise":
                failing = FailingRead(dataset.table.read_video, rig.random.randrange(GOOD))
                dataset.table.read_video = failing
                text = refused(lambda dataset=dataset: _skipped(dataset, 20), WorkerError)
                need("sample 's0" in text, f"no sample is named: {text}")
                continue
            seconds, text = _end_worker(dataset, kind)
            times.append(seconds)
            need(re.search(r"samples? 's0", text), f"no sample is named: {text}")
            need(seconds < timeout + rig.patience, f"the error came after {seconds:.1f} s")
    seen.notes.append(f"the error came after at most {max(times):.1f} s, timeout {timeout:g} s")


def _end_worker(dataset: ClipDataset, kind: str) -> tuple[float, str]:
    before = {child.pid for child in multiprocessing.active_children()}
    loader = build_loader(dataset.config, dataset, batch_size=4)
    stream = loader.forever()
    next(stream)
    pids = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
    for pid in pids:
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    began = time.monotonic()
    try:
        text = refused(lambda: list(islice(stream, 10)), WorkerError)
        return time.monotonic() - began, text
    finally:
        loader.close()
        need(not any(map(psutil.pid_exists, pids)), "a worker is still alive")
