"""Rows with hostile input: pickled programs, archives, enormous contents."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import pickle
import struct
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from svilm_fast.core.errors import EXIT_BAD_INPUT, CheckpointError, UserError
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import DataError, ShardError
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardWriter, scan_shard
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.train.checkpoint.store import tag_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.folder.manifest import write_manifest
from svilm_fast.train.folder.trust import load_restricted
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig, copy_of
from tests.faults.samples import a_video, dataset_of, open_folder, refused


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@row(
    13,
    "pickled programs in checkpoints and shards, YAML tags, pipe: and other URLs",
    "0 executions",
    tries=19,
    short=19,
)
def programs(rig: Rig, tries: int, seen: Tries) -> None:
    folder = rig.new_folder("hostile")
    marker = folder / "executed"
    whole = rig.saved("training.steps=12", "checkpoint.every_steps=6")
    root = copy_of(whole, folder)
    newest = root / "checkpoints" / tag_of(12)
    payload = pickle.dumps(Touch(marker))

    def untouched() -> None:
        need(not marker.exists(), "the program was executed")

    for path in sorted(newest.glob("*.pt")):
        for plain in (True, False):
            with seen.one(f"{path.name}, {'pickle' if plain else 'torch.save'}"):
                path.write_bytes(payload)
                if not plain:
                    torch.save({"module": Touch(marker)}, path)
                refused(lambda path=path: load_restricted(path), CheckpointError)
                untouched()
    with seen.one("a real start from such a checkpoint"):
        write_manifest(newest)
        options = ["--resume"]
        run = rig.start(root, "training.steps=12", "checkpoint.every_steps=6", options=options)
        need(run.wait() == EXIT_BAD_INPUT, f"exit code {run.code()}; {run.tail()}")
        need("nothing in it was executed" in run.tail(), run.tail())
        untouched()
    tags = ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:")
    for tag in tags:
        with seen.one(f"YAML tag {tag}"):
            recipe = folder / "recipe.yaml"
            recipe.write_text(f"run:\n  name: {tag} ['touch {marker}']\n")
            refused(lambda recipe=recipe: load_config(str(recipe)), UserError)
            # An override that is no plain value is taken as the text that it is, or refused.
            override = f"run.name={tag} [touch {marker}]"
            with contextlib.suppress(UserError):
                name = load_config(None, [override]).run.name
                need(name == override.partition("=")[2], f"it became {name!r}")
            untouched()
    video = a_video(rig)
    for extension in ("pkl", "pyd", "pth", "npy", "json"):
        with seen.one(f"a pickled program as .{extension} of a sample"):
            shards = folder / f"shards_{extension}"
            members = {"mp4": video, "json": b'{"caption": "a red circle"}', extension: payload}
            with ShardWriter(shards) as writer:
                writer.write("k", members)
            try:
                dataset = open_folder(shards)
                dataset.batch(range(len(dataset)))
            except DataError:
                need(extension == "json", "a member that nobody reads is refused")
            untouched()
    for url in ("pipe:touch", "pipe: touch", "file:|touch", "|touch"):
        with seen.one(f"{url!r} as a split and as a video of a list"):
            for split in (f"{url} {marker}", f"{url} {marker}.tar"):
                refused(lambda split=split: open_split(DataConfig(train=split), "train"), DataError)
            listed = folder / "list.csv"
            with listed.open("w", newline="") as file:
                csv.writer(file).writerows([["video", "caption"], [f"{url} {marker}", "a circle"]])
            config = DataConfig(train=str(listed), skips={"always_allowed": 0})
            refused(lambda config=config: _load_all(config), DataError)
            untouched()


def _load_all(config: DataConfig) -> None:
    dataset = dataset_of(config)
    dataset.batch(range(len(dataset)))


def _member(name: str, content: bytes = b"", **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


def _tar_tricks(video: bytes) -> dict[str, bytes]:
    good = _member("k.mp4", video) + _member("k.json", b'{"caption": "a circle"}')
    end = bytes(1024)
    links = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}
    special = {"fifo": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE, "block": tarfile.BLKTYPE}
    tricks = {
        **{
            f"name {name}": good + _member(name, b"escaped")
            for name in ("../escaped.mp4", "/tmp/escaped.mp4", "a/../../escaped.mp4", "C:/e.mp4")
        },
        **{
            f"{kind} to {target}": good + _member("l.mp4", type=number, linkname=target)
            for kind, number in links.items()
            for target in ("/etc/passwd", "../escaped.mp4", "k.mp4")
        },
        **{kind: good + _member("d.mp4", type=number) for kind, number in special.items()},
        "duplicate": good + _member("k.mp4", b"other"),
        "pax path": good + _member("a" * 101 + "/../../escaped.mp4", b"escaped"),
        "size of 2^62": _member("k.mp4", size=2**62),
        "size of the next members": _member("a.mp4", size=10**6) + good,
        "an empty header inside": good + bytes(512) + good,
        "cut": good[:-700],
        "not a tar": b"\x1f\x8b" + good[2:],
        "flipped bit in a header": good[:130] + bytes([good[130] ^ 1]) + good[131:],
    }
    ended = {kind: content + end for kind, content in tricks.items() if kind != "cut"}
    return ended | {"cut": tricks["cut"]}


@row(
    14,
    "tar members that leave the archive, links, devices, doubles, 1,000,000 members, false sizes",
    "nothing outside, each refused, in bounded time",
    tries=20,
    short=20,
)
def tars(rig: Rig, tries: int, seen: Tries) -> None:
    folder = rig.new_folder("tars")
    path = folder / "inside" / "x.tar"
    path.parent.mkdir()
    for kind, content in _tar_tricks(a_video(rig)).items():
        with seen.one(kind):
            path.write_bytes(content)
            began = time.monotonic()
            refused(lambda: scan_shard(str(path)), ShardError)
            need(time.monotonic() - began < 5, f"it took {time.monotonic() - began:.1f} s")
            need(not list(rig.folder.rglob("*escaped*")), "a file was written")
            need(not Path("/tmp/escaped.mp4").exists(), "a file was written to /tmp")
    members = 20_000 if rig.short else 1_000_000
    with seen.one(f"{members:,} members"):
        header = bytearray(_member("k0000000.mp4"))
        with path.open("wb") as file:
            for number in range(members):
                header[1:8] = b"%07d" % number
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                file.write(header)
            file.write(bytes(1024))
        began = time.monotonic()
        refused(lambda: scan_shard(str(path), max_members=members - 1), ShardError)
        need(len(scan_shard(str(path), max_members=members).samples) == members, "some are lost")
        seconds = time.monotonic() - began
        need(seconds < 120, f"it took {seconds:.0f} s")
        seen.notes.append(f"{members:,} members were listed and refused in {seconds:.1f} s")
        path.unlink()


def _gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\0\x0a\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    )


def _big_video(codec: str, container: str, side: int) -> bytes:
    import av

    target, layout = io.BytesIO(), "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width = stream.height = side
        stream.pix_fmt, stream.thread_count = layout, 1
        frame = av.VideoFrame(side, side, layout)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


class PeakMemory:
    """The largest sum of resident bytes of this process and its children, sampled."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *exception: Any) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self.start


def _resident() -> int:
    total = 0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@row(
    16,
    "pictures, videos and compressed text of enormous size",
    "refused within 1 s, memory grows by less than 256 MB",
    tries=7,
    short=5,
)
def bombs(rig: Rig, tries: int, seen: Tries) -> None:
    decode_limited(a_video(rig), every_frame)  # starts the decoding process
    videos = {f"GIF of {side:,} pixels square": _gif(side, side) for side in (65_535, 20_000)}
    videos["GIF of 65,535 x 8,000"] = _gif(65_535, 8_000)
    videos["H.264 of 8,192 x 8,192"] = _big_video("libx264", "mp4", 8_192)
    if not rig.short:
        videos["MPEG-4 of 8,000 x 8,000"] = _big_video("mpeg4", "mp4", 8_000)
        videos["MJPEG of 16,000 x 16,000"] = _big_video("mjpeg", "matroska", 16_000)
    acts: dict[str, Callable[[], Any]] = {
        kind: partial(decode_limited, content, every_frame) for kind, content in videos.items()
    }
    vocabulary = rig.new_folder("vocabulary") / "bpe_simple_vocab_16e6.txt.gz"
    vocabulary.write_bytes(gzip.compress(bytes(200_000_000), compresslevel=1))
    acts["gzip of 200 MB of zeros as CLIP's vocabulary"] = partial(Tokenizer.clip, vocabulary)
    worst = 0.0
    for kind, act in acts.items():
        with seen.one(kind), PeakMemory() as memory:
            began = time.monotonic()
            refused(act, DataError)
            seconds = time.monotonic() - began
            worst = max(worst, seconds)
            need(seconds < rig.patience, f"it took {seconds:.1f} s")
            need(memory.growth < 256 << 20, f"memory grew by {memory.growth:,} bytes")
    seen.notes.append(f"refused within {worst:.2f} s")
