"""Cutting videos to clips made for training: length, size and key-frame distance, as H.264.

The frames are those that training would decode (`decode_limited`, so hostile files stay in their
process), re-encoded by x264 with one thread: the same frames, settings and versions of PyAV give
the same bytes. Audio is dropped.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import DecodedClip
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import DataError, VideoError
from svilm_fast.data.segments import FrameRange, InSegment, Segment, part

_TICKS = 90_000  # of the clips' time base, per second
_ROUNDING_S = 1e-3  # of timestamps
# Two of three frames between key frames are not referenced: a decoder that does not want them may
# leave them out. No frame before a key frame refers to one behind it.
# Without mbtree: its assembly reads memory that nobody has written, so bytes would differ by chance
# (seen with x264 of PyAV 18.1 under two values of MALLOC_PERTURB_).
_X264 = "keyint=infinite:scenecut=0:open-gop=0:bframes=2:b-adapt=0:b-pyramid=none:mbtree=0"


@dataclass(frozen=True)
class Precut:
    """How videos are cut; seconds, and pixels of the shorter side.

    A video shorter than `clip_seconds` is one clip. Of a longer one, what remains behind the last
    whole clip is a clip if it is at least half as long.
    """

    clip_seconds: float = 10.0
    short_side: int = 256
    key_frame_seconds: float = 1.0
    crf: int = 23  # quality of x264, 0 (no loss) to 51

    def __post_init__(self) -> None:
        if not (0 < self.clip_seconds < math.inf and 0 < self.key_frame_seconds < math.inf):
            raise DataError("clip_seconds and key_frame_seconds must be above 0 and finite")
        if self.short_side < 16 or self.short_side % 2 or not 0 <= self.crf <= 51:
            raise DataError("short_side must be an even number from 16, crf from 0 to 51")

    def parameters(self) -> dict[str, Any]:
        """What decides the bytes, for a manifest."""
        import av

        versions = {name: list(version) for name, version in av.library_versions.items()}
        return {**asdict(self), "av": av.__version__, "libraries": versions}


@dataclass(frozen=True)
class CutClip:
    """A clip: MP4 bytes, its frames' places in the segment, and its place in the video, seconds."""

    data: bytes
    first: int  # number of its first frame in the item (the video, or its segment)
    frames: int
    item_frames: int
    item_start: float  # start of the item in the video
    start: float  # of the clip in the video
    end: float
    fps: float
    size: tuple[int, int]  # width, height
    source_size: tuple[int, int]  # those of the video
    scaled_size: tuple[int, int]  # before a last odd row or column was cut off


def cut_video(
    data: bytes, segment: Segment | None, precut: Precut, limits: LimitsConfig
) -> tuple[list[CutClip], float]:
    """The clips of a video or of a segment, and the seconds at its end that are in none.

    Raises DataError where the video cannot be decoded to its end or has no times.
    """
    probe = decode_limited(data, InSegment(FrameRange(0, 1), segment), short_side=16, limits=limits)
    item_first, item = part(probe.timeline, segment)
    times = _times(probe, item_first, item.total)
    bounds, dropped = _bounds(times, precut.clip_seconds)
    clips = []
    for first, stop in bounds:
        choose = FrameRange(item_first + first, stop - first)
        clip = decode_limited(data, choose, short_side=precut.short_side, limits=limits)
        seconds = times[first : stop + 1]
        height, width = clip.frames.shape[1:3]
        size = (width // 2 * 2, height // 2 * 2)  # 4:2:0 has one colour for two pixels
        frames = clip.frames[:, : size[1], : size[0]]
        if min(size) < 2:
            raise VideoError(f"{width} x {height} pixels are too few for a clip")
        duration = float(seconds[-1] - seconds[0])
        clips.append(
            CutClip(
                encode_clip(frames, seconds - seconds[0], precut),
                first,
                len(frames),
                item.total,
                float(times[0]),
                float(seconds[0]),
                float(seconds[-1]),
                len(frames) / duration,
                size,
                clip.source_size,
                (width, height),
            )
        )
    return clips, dropped


def _times(probe: DecodedClip, first: int, total: int) -> np.ndarray:
    """Start of every frame of the item and end of the last one, in seconds of the video."""
    edges = probe.timeline.edges
    if edges is not None:
        return edges[first : first + total + 1] - edges[0]
    period = probe.timeline.period or (1 / probe.fps if probe.fps > 0 else 0.0)
    if period <= 0:
        raise VideoError("the video has neither timestamps nor a frame rate: pack it uncut")
    return (first + np.arange(total + 1)) * period


def _bounds(times: np.ndarray, seconds: float) -> tuple[list[tuple[int, int]], float]:
    """First frame and the one behind the last of every clip; seconds that are left out."""
    total = len(times) - 1
    length = float(times[-1] - times[0])
    whole = int((length + _ROUNDING_S) // seconds)
    rest = max(0.0, length - whole * seconds)
    count = max(1, whole + (rest >= seconds / 2))
    starts = times[0] + seconds * np.arange(count + 1)
    edges = np.searchsorted(times[:-1], starts - _ROUNDING_S)
    edges[-1] = total if count > whole else edges[-1]
    # A frame that is shown for longer than a clip leaves clips without a frame of their own.
    bounds = [(int(a), int(b)) for a, b in itertools.pairwise(edges) if a < b]
    return bounds, float(times[-1] - times[bounds[-1][1]])


def encode_clip(frames: np.ndarray, edges: np.ndarray, precut: Precut) -> bytes:
    """MP4 bytes of uint8 [F, h, w, 3] frames, h and w even.

    edges: float64 [F + 1], start of every frame and end of the last one; seconds from 0.
    """
    import av
    from av.video.frame import PictureType
    from av.video.reformatter import VideoReformatter

    ticks = np.rint(edges * _TICKS).astype(np.int64)
    # Times must ascend, also those of frames that are closer than a tick.
    ticks = np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))
    keys = np.diff(np.floor((edges[:-1] + _ROUNDING_S) / precut.key_frame_seconds), prepend=-1) > 0
    reformatter = VideoReformatter()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(len(frames) / float(edges[-1])).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=max(rate, Fraction(1, 1001)))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.options = {
            "crf": str(precut.crf),
            "preset": "medium",
            "flags": "+bitexact",
            "forced-idr": "1",
            "x264-params": f"{_X264}:threads=1",
        }
        lasts = dict(zip(ticks.tolist(), np.diff(ticks).tolist()))
        for image, tick, key in zip(frames, lasts, keys, strict=True):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = reformatter.reformat(rgb, format="yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
            frame.pict_type = PictureType.I if key else PictureType.NONE
            _write(container, stream.encode(frame), lasts)
        _write(container, stream.encode(), lasts)
    return file.getvalue()


def _write(container: Any, packets: list[Any], lasts: dict[int, int]) -> None:
    for packet in packets:
        packet.duration = lasts[packet.pts]  # the encoder knows one duration for all frames
        container.mux(packet)
