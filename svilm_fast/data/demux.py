"""Opening a video file in memory: its stream, the stream's packets, and whether all are there."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from svilm_fast.data import containers, display
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.errors import (
    EmptyVideoError,
    OversizedVideoError,
    SlowVideoError,
    TruncatedVideoError,
    VideoError,
)
from svilm_fast.data.timeline import ShownFrames

# More missing than both is truncation: the last frames of a file are often lost without harm.
MISSING_FRAMES = 2
MISSING_SHARE = 0.02


class Budget:
    """What one file may cost. The methods raise where it costs more."""

    def __init__(self, limits: LimitsConfig, seconds: float | None) -> None:
        self.limits = limits
        self.seconds = limits.decode_s if seconds is None else seconds
        self.deadline = time.monotonic() + self.seconds

    def check_time(self) -> None:
        """Raise SlowVideoError when the time is over."""
        if time.monotonic() > self.deadline:
            raise SlowVideoError(too_slow(self.seconds))

    def check_size(self, width: int, height: int) -> None:
        """Raise OversizedVideoError for a frame with too many pixels."""
        if width * height > self.limits.frame_pixels:
            raise OversizedVideoError(
                f"{width} x {height} pixels, more than the limit of {self.limits.frame_pixels} "
                "(limits.frame_pixels)"
            )


@dataclass
class OpenVideo:
    """A video stream, ready to be decoded from its first packet."""

    context: Any  # PyAV's decoder, not yet used
    packets: list[Any]
    shown: ShownFrames
    size: tuple[int, int]  # width, height with square pixels, before turns
    fps: float  # 0.0 where the container does not say
    time_base: Any  # seconds per tick of the packets' times, a Fraction
    stream_index: int


@contextlib.contextmanager
def open_video(data: bytes, container: containers.Container, budget: Budget) -> Iterator[OpenVideo]:
    """Open the file's default video stream and read its packets.

    Raises VideoError or one of its kinds, and what PyAV raises.
    """
    import av

    limits = budget.limits
    options = {
        # No demuxer may open anything: the bytes are all there is.
        "protocol_whitelist": "none",
        "codec_whitelist": containers.CODEC_WHITELIST,
        # Decoders refuse larger frames before they allocate them.
        "max_pixels": str(limits.frame_pixels),
    }
    source = _TimedBytes(data, budget.deadline)
    with av.open(source, mode="r", format=container.demuxer, options=options) as opened:
        budget.check_time()
        streams = _candidates(opened)
        packets, end = _packets(opened, streams, budget)
        # ffmpeg prefers streams that have packets, then the default one, then the largest.
        stream = max(streams, key=lambda s: (bool(packets[s.index]), _rank(s)))
        context = stream.codec_context
        if not packets[stream.index]:
            raise EmptyVideoError("the video stream has no frames")
        if context.width * context.height == 0:
            raise VideoError(
                "the frames' size is unknown or above the "
                f"{limits.frame_pixels} pixels allowed (limits.frame_pixels)"
            )
        budget.check_size(context.width, context.height)
        shown = ShownFrames(
            packets[stream.index],
            context.name,
            stream.time_base,
            reorders=bool(context.has_b_frames),
        )
        if shown.total == 0:
            raise EmptyVideoError("no frame of the video is shown")
        _check_complete(data, container, opened, stream, shown, end)
        context.options = {"max_pixels": str(limits.frame_pixels)}
        # One thread: open containers with decoder threads hang forked children (PyAV 1962).
        stream.thread_count = 1
        aspect = stream.sample_aspect_ratio
        size = display.square_pixels(context.width, context.height, aspect)
        budget.check_size(*size)
        yield OpenVideo(
            context=context,
            packets=packets.pop(stream.index),
            shown=shown,
            size=size,
            fps=float(stream.average_rate or 0.0),
            time_base=stream.time_base,
            stream_index=stream.index,
        )


class _TimedBytes(io.BytesIO):
    """The file's bytes, which end when the time is over: FFmpeg retries a read that raises."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if time.monotonic() > self._deadline else super().read(size)


def _candidates(opened: Any) -> list[Any]:
    """The video streams that can be decoded and are no cover pictures."""
    from av.stream import Disposition

    videos = opened.streams.video
    films = [s for s in videos if not s.disposition & Disposition.attached_pic]
    if not films:
        only = "only a cover picture" if videos else "no video stream"
        raise EmptyVideoError(f"the file has {only}")
    known = [s for s in films if s.codec_context is not None]
    allowed = [s for s in known if s.codec_context.name in containers.VIDEO_CODECS]
    if not allowed:
        what = (
            f"codec {known[0].codec_context.name!r} is not allowed"
            if known
            else ("video's codec is unknown")
        )
        raise VideoError(f"the {what}: re-encode it, for example as H.264")
    return allowed


def _packets(opened: Any, streams: list[Any], budget: Budget) -> tuple[dict[int, list[Any]], float]:
    """The packets of the streams, and the end of the last packet of any stream, seconds."""
    packets: dict[int, list[Any]] = {stream.index: [] for stream in streams}
    bases = {stream.index: stream.time_base for stream in opened.streams}
    end, most = 0.0, budget.limits.frames
    for count, packet in enumerate(all_packets(opened)):
        if not count & 15:
            budget.check_time()
        mine = packets.get(packet.stream_index)
        if mine is None:
            end = max(end, _end((packet,), bases[packet.stream_index]))
            continue
        mine.append(packet)
        if len(mine) > most:
            raise OversizedVideoError(f"more than {most} frames are not allowed (limits.frames)")
    budget.check_time()
    return packets, max(end, *(_end(mine, bases[number]) for number, mine in packets.items()))


def _end(packets: Sequence[Any], time_base: Any) -> float:
    """When the last of the packets ends, seconds; 0 without times."""
    stamps = [packet.pts for packet in packets]
    if None in stamps:
        stamps = [packet.dts if pts is None else pts for pts, packet in zip(stamps, packets)]
    ends = [
        stamp + (packet.duration or 0)
        for stamp, packet in zip(stamps, packets)
        if stamp is not None
    ]
    return float(max(0, max(ends, default=0)) * time_base)


def _check_complete(
    data: bytes,
    container: containers.Container,
    opened: Any,
    stream: Any,
    shown: ShownFrames,
    end: float,
) -> None:
    """Compare the duration that the header states with what is there."""
    if not container.states_duration:
        return
    if container is containers.MOV:
        kinds, cut = containers.top_level_boxes(data)
        if cut and b"moof" in kinds:  # no header states how many fragments there are
            raise TruncatedVideoError("the file ends inside a fragment: it is truncated")
    size = containers.asf_file_size(data) if container is containers.ASF else None
    if size is not None and len(data) < (1 - MISSING_SHARE) * size:
        message = f"{len(data)} of {size} bytes are there: the file is truncated"
        raise TruncatedVideoError(message)
    rate = float(stream.average_rate or 0.0)
    typical, longest = shown.interval() or ((1 / rate, 1 / rate) if rate else (0.0, 0.0))
    if container is containers.AVI:  # FFmpeg derives the duration from what is there
        durations = [stream.frames / rate if rate else 0.0]
    else:
        durations = [
            (opened.duration or 0) / 1_000_000,
            float((stream.duration or 0) * stream.time_base),
        ]
    stated = min((value for value in durations if value), default=0.0)
    missing = stated - end
    # Half an interval is left to rounding.
    if typical and missing > max((MISSING_FRAMES + 0.5) * longest, MISSING_SHARE * stated):
        raise truncated(shown.total, shown.total + round(missing / typical))


def all_packets(opened: Any) -> Iterator[Any]:
    """The packets of the streams that were there at the start."""
    try:
        for packet in opened.demux():
            if packet.size:
                yield packet
    except IndexError:
        # At its end, PyAV (18.1) stumbles over streams that appeared after the start.
        return


def too_slow(seconds: float) -> str:
    """The message of a SlowVideoError."""
    return (
        f"decoding takes longer than the {seconds:g} s allowed (limits.decode_s; for a clip that "
        "is loaded, at most half of data.timeout_s)"
    )


def truncated(count: int, total: int, what: str | None = None) -> TruncatedVideoError:
    """The error of a file that gives `count` of `total` frames."""
    reason = f" ({what})" if what else ""
    return TruncatedVideoError(
        f"only {count} of {total} frames can be decoded{reason}: the file is truncated or damaged"
    )


def _rank(stream: Any) -> int:
    """FFmpeg's score of a video stream (fftools/ffmpeg_opt.c): its area, raised if default."""
    from av.stream import Disposition

    context = stream.codec_context
    default = bool(stream.disposition & Disposition.default)
    return context.width * context.height + 5_000_000 * default
