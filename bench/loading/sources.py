"""The clips that are loaded: made videos of given lengths, or a folder of the user's own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import DataError
from svilm_fast.data.shards import ShardWriter

RATE = 25
_SIZE = (340, 256)  # a short side of 256 pixels, as data sets are commonly prepared
_ENCODED_S = 60  # longer videos repeat this one's packets
_OPTIONS = {"preset": "veryfast", "crf": "26", "bf": "3", "g": "250"}
_CAPTION = "a red circle moves over a dark floor."


@dataclass(frozen=True)
class VideoSource:
    """Clips in one tar shard."""

    name: str
    folder: Path
    clips: int
    seconds: float | None  # of each; None where they differ


def made_source(seconds: int, clips: int, cache: Path, advance: Callable[[], None]) -> VideoSource:
    """A shard of H.264 videos of noise that moves; kept in `cache` and encoded once."""
    key = hashlib.sha256(repr((seconds, clips, _SIZE, _OPTIONS, RATE, 1)).encode()).hexdigest()[:12]
    target = cache / f"bench-loading-{key}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "shards"
            with ShardWriter(made, max_samples=clips, max_bytes=1 << 40) as writer:
                for number in range(clips):
                    writer.write(f"clip{number:03d}", _members(_video(seconds, number), "mp4"))
                    advance()
            if not target.exists():  # another process may have been faster; its clips are the same
                made.rename(target)
    return VideoSource(f"{seconds} s", target, clips, seconds)


def folder_source(videos: Path, clips: int, folder: Path) -> VideoSource:
    """The first videos of a folder, by name, as a shard in `folder`. Raises DataError."""
    found = sorted(
        path for path in videos.iterdir() if path.suffix.lstrip(".").lower() in VIDEO_EXTENSIONS
    )[:clips]
    if not found:
        raise DataError(f"{videos} holds no videos: give a folder of video files")
    with ShardWriter(folder, max_samples=len(found), max_bytes=1 << 40) as writer:
        for number, path in enumerate(found):
            kind = path.suffix.lstrip(".").lower()
            writer.write(f"clip{number:03d}", _members(path.read_bytes(), kind))
    return VideoSource(videos.name, folder, len(found), None)


def cache_folder() -> Path:
    """Where made videos are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "svilm-fast"


def _members(video: bytes, kind: str) -> dict[str, bytes]:
    return {kind: video, "json": json.dumps({"caption": _CAPTION}).encode()}


def _video(seconds: int, seed: int) -> bytes:
    encoded = _encoded(min(seconds, _ENCODED_S), seed)
    return encoded if seconds <= _ENCODED_S else _repeated(encoded, seconds)


def _encoded(seconds: int, seed: int) -> bytes:
    """Blurred noise that drifts, with squares that move over it."""
    import av

    random = np.random.default_rng(seed)
    width, height = _SIZE
    coarse = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    ground = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    grain = random.integers(0, 12, (height, width, 3), dtype=np.uint8)
    squares = random.integers(0, 200, (6, 2)), random.uniform(-3, 3, (6, 2))
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count, stream.options = 1, dict(_OPTIONS)
        for number in range(seconds * RATE):
            image = np.roll(ground, (number // 2, number), axis=(0, 1)) // 2
            image += np.roll(grain, number * 7919, axis=0)
            for start, speed in zip(*squares):
                y, x = ((start + number * speed) % (height - 40, width - 40)).astype(int)
                image[y : y + 40, x : x + 40] = 230
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


def _repeated(video: bytes, seconds: int) -> bytes:
    """The video's packets again and again, up to this length."""
    import av

    target = io.BytesIO()
    with (
        av.open(io.BytesIO(video), "r") as source,
        av.open(target, "w", format="mp4") as output,
    ):
        template = source.streams.video[0]
        assert template.time_base is not None
        stream = output.add_stream_from_template(template)
        step = round(_ENCODED_S / template.time_base)
        for turn in range(-(-seconds // _ENCODED_S)):
            source.seek(0)
            for packet in source.demux(template):
                if packet.size and packet.dts is not None and packet.pts is not None:
                    packet.pts, packet.dts = packet.pts + turn * step, packet.dts + turn * step
                    packet.stream = stream
                    output.mux(packet)
    return target.getvalue()
