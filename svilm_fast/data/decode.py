"""Decoding of chosen frames of a video with PyAV: the frames that the ffmpeg command shows.

`decode_clip` runs in the calling process. Files that may be hostile go through
`svilm_fast.data.decode_process`, which calls it in a limited process.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data import containers, display
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.errors import (
    DataError,
    EmptyVideoError,
    OversizedVideoError,
    SlowVideoError,
    TruncatedVideoError,
    VideoError,
)
from svilm_fast.data.timeline import ShownFrames, Timeline

# More missing than both is truncation: the last frames of a file are often lost without harm.
_MISSING_FRAMES = 2
_MISSING_SHARE = 0.02

Choose = Callable[[Timeline], np.ndarray]


@dataclass
class DecodedClip:
    """Frames of one video."""

    frames: np.ndarray  # uint8 [n, h, w, 3], RGB, as displayed
    index: np.ndarray  # int64 [n], their places in the video
    timeline: Timeline
    fps: float  # 0.0 where the container does not say
    source_size: tuple[int, int]  # width, height as displayed, before scaling

    @property
    def total(self) -> int:
        """Frames of the whole video."""
        return self.timeline.total


def every_frame(timeline: Timeline) -> np.ndarray:
    """A choice for `decode_clip`: all frames."""
    return np.arange(timeline.total, dtype=np.int64)


def last_frame(timeline: Timeline) -> np.ndarray:
    """A choice for `decode_clip` that makes it decode everything: the last frame."""
    return np.array([timeline.total - 1], dtype=np.int64)


def decode_clip(
    data: bytes,
    choose: Choose,
    *,
    short_side: int | None = None,
    limits: LimitsConfig | None = None,
    seconds: float | None = None,
) -> DecodedClip:
    """Decode the frames `choose(timeline)` (ascending, repeats allowed) of a video file in memory.

    The frames are those that the ffmpeg command shows of the file's default video stream: edit
    lists, turns, mirroring and the aspect of pixels are applied. They are scaled down so that the
    shorter side is `short_side` pixels; smaller ones stay. `seconds` is the longest that decoding
    may take (default: `limits.decode_s`); it is checked between packets.

    Raises VideoError or one of its kinds: TruncatedVideoError, EmptyVideoError,
    OversizedVideoError, SlowVideoError, or whatever `choose` raises.
    """
    limits = limits or LimitsConfig()
    if len(data) > limits.video_bytes:
        raise OversizedVideoError(
            f"{len(data)} bytes, more than the limit of {limits.video_bytes} (limits.video_bytes)"
        )
    if not data:
        raise EmptyVideoError("the video file is empty (0 bytes)")
    container = containers.sniff(data)
    if container is None:
        raise VideoError(
            f"not a video file of an allowed kind (it begins with {data[:12]!r}): give a file "
            f"such as {', '.join(containers.VIDEO_EXTENSIONS)}"
        )
    return _Decoder(data, container, choose, short_side, limits, seconds).run()


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height after scaling down to `short_side`; unchanged where already smaller."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    ratio = short_side / min(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


class _TimedBytes(io.BytesIO):
    """The file's bytes, which end when the time is over: FFmpeg retries a read that raises."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if time.monotonic() > self._deadline else super().read(size)


class _Collector:
    """Keeps the chosen frames while frames stream past in order."""

    def __init__(self, shown: ShownFrames, choose: Choose, render: Callable[[Any], np.ndarray]):
        self.shown, self.render = shown, render
        self.timeline = shown.timeline()
        self.index = np.asarray(choose(self.timeline), dtype=np.int64)
        if self.index.size == 0 or self.index[0] < 0 or np.any(np.diff(self.index) < 0):
            raise DataError("the chosen frames must be ascending and at least one")
        self.wanted = sorted(set(self.index.tolist()), reverse=True)  # the next one is the last
        self.kept: dict[int, np.ndarray] = {}
        self.place = -1
        self._latest: Any = None
        self._image: np.ndarray | None = None  # of the latest frame

    def add(self, frame: Any, count: int) -> bool:
        """Take the frame that was decoded as number `count`; False when no more are needed."""
        place = max(self.place, self.shown.place(frame.pts, count))
        # A place without a frame of its own still shows the frame before it.
        while self.wanted and self.wanted[-1] < place:
            self._keep_latest()
        self._latest, self._image, self.place = frame, None, place
        if self.wanted and self.wanted[-1] == place:
            self._keep_latest()
        return bool(self.wanted)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and their places; the last decoded frame stands in for a few lost ones."""
        total = self.timeline.total
        missing = min(self.index[-1], total - 1) - self.place
        if missing > max(_MISSING_FRAMES, math.ceil(_MISSING_SHARE * total)):
            raise _truncated(self.place + 1, total)
        while self.wanted:
            self._keep_latest()
        frames = np.stack([self.kept[i] for i in self.index.tolist()])
        return frames, np.minimum(self.index, self.place)

    def _keep_latest(self) -> None:
        if self._image is None:
            self._image = self.render(self._latest)
        self.kept[self.wanted.pop()] = self._image


class _Decoder:
    """One decoding of one file."""

    def __init__(
        self,
        data: bytes,
        container: containers.Container,
        choose: Choose,
        short_side: int | None,
        limits: LimitsConfig,
        seconds: float | None,
    ) -> None:
        self.data, self.container, self.choose = data, container, choose
        self.short_side, self.limits = short_side, limits
        self.seconds = limits.decode_s if seconds is None else seconds
        self.deadline = time.monotonic() + self.seconds
        self.collector: _Collector | None = None
        self.count = 0  # frames decoded
        self.size = (0, 0)  # before turns, scaled

    def run(self) -> DecodedClip:
        import av

        try:
            return self._decode(av)
        except (av.FFmpegError, OSError, ValueError, MemoryError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            self._check_time()  # the bytes may have ended for that reason
            if isinstance(error, MemoryError):
                raise OversizedVideoError(
                    f"decoding needs more than the {self.limits.memory_bytes} bytes of memory "
                    "allowed (limits.memory_bytes)"
                ) from None
            what = getattr(error, "strerror", None) or single_line(error)
            if self.collector is not None:
                raise _truncated(self.count, self.collector.timeline.total, what) from None
            if self.container is containers.MOV and containers.top_level_boxes(self.data)[1]:
                message = f"the file is truncated ({len(self.data)} bytes)"
                raise TruncatedVideoError(message) from None
            raise VideoError(f"the video cannot be decoded: {what}") from None
        finally:
            self.collector = None  # it refers to this object; its frames must not wait for gc

    def _decode(self, av: Any) -> DecodedClip:
        options = {
            # No demuxer may open anything: the bytes are all there is.
            "protocol_whitelist": "none",
            "codec_whitelist": containers.CODEC_WHITELIST,
            # Decoders refuse larger frames before they allocate them.
            "max_pixels": str(self.limits.frame_pixels),
        }
        with av.open(
            _TimedBytes(self.data, self.deadline),
            mode="r",
            format=self.container.demuxer,
            options=options,
        ) as opened:
            self._check_time()
            streams = self._candidates(opened)
            packets, end = self._packets(opened, streams)
            # ffmpeg prefers streams that have packets, then the default one, then the largest.
            stream = max(streams, key=lambda s: (bool(packets[s.index]), _rank(s)))
            context = stream.codec_context
            if not packets[stream.index]:
                raise EmptyVideoError("the video stream has no frames")
            if context.width * context.height == 0:
                raise VideoError(
                    "the frames' size is unknown or above the "
                    f"{self.limits.frame_pixels} pixels allowed (limits.frame_pixels)"
                )
            self._check_size(context.width, context.height)
            shown = ShownFrames(
                packets[stream.index],
                context.name,
                stream.time_base,
                reorders=bool(context.has_b_frames),
            )
            if shown.total == 0:
                raise EmptyVideoError("no frame of the video is shown")
            self._check_complete(opened, stream, shown, end)
            context.options = {"max_pixels": str(self.limits.frame_pixels)}
            # One thread: open containers with decoder threads hang forked children (PyAV 1962).
            stream.thread_count = 1
            aspect = stream.sample_aspect_ratio
            width, height = display.square_pixels(context.width, context.height, aspect)
            self._check_size(width, height)
            self.size = scaled_size(width, height, self.short_side)
            turn = self._frames(context, packets.pop(stream.index), shown)
            fps = float(stream.average_rate or 0.0)
        if self.collector is None:
            raise EmptyVideoError("no frame can be decoded")
        frames, index = self.collector.finish()
        source = (height, width) if turn[0] % 2 else (width, height)
        return DecodedClip(frames, index, self.collector.timeline, fps, source)

    def _candidates(self, opened: Any) -> list[Any]:
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

    def _packets(self, opened: Any, streams: list[Any]) -> tuple[dict[int, list[Any]], float]:
        """The packets of the streams, and the end of the last packet of any stream, seconds."""
        packets: dict[int, list[Any]] = {stream.index: [] for stream in streams}
        end = 0.0
        for packet in _all_packets(opened):
            self._check_time()
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
            mine = packets.get(packet.stream_index)
            if mine is not None:
                mine.append(packet)
                if len(mine) > self.limits.frames:
                    raise OversizedVideoError(
                        f"more than {self.limits.frames} frames are not allowed (limits.frames)"
                    )
        self._check_time()
        return packets, end

    def _check_complete(self, opened: Any, stream: Any, shown: ShownFrames, end: float) -> None:
        """Compare the duration that the header states with what is there."""
        if not self.container.states_duration:
            return
        if self.container is containers.MOV:
            kinds, cut = containers.top_level_boxes(self.data)
            if cut and b"moof" in kinds:  # no header states how many fragments there are
                raise TruncatedVideoError("the file ends inside a fragment: it is truncated")
        size = containers.asf_file_size(self.data) if self.container is containers.ASF else None
        if size is not None and len(self.data) < (1 - _MISSING_SHARE) * size:
            message = f"{len(self.data)} of {size} bytes are there: the file is truncated"
            raise TruncatedVideoError(message)
        rate = float(stream.average_rate or 0.0)
        typical, longest = shown.interval() or ((1 / rate, 1 / rate) if rate else (0.0, 0.0))
        if self.container is containers.AVI:  # FFmpeg derives the duration from what is there
            durations = [stream.frames / rate if rate else 0.0]
        else:
            durations = [
                (opened.duration or 0) / 1_000_000,
                float((stream.duration or 0) * stream.time_base),
            ]
        stated = min((value for value in durations if value), default=0.0)
        missing = stated - end
        # Half an interval is left to rounding.
        if typical and missing > max((_MISSING_FRAMES + 0.5) * longest, _MISSING_SHARE * stated):
            raise _truncated(shown.total, shown.total + round(missing / typical))

    def _frames(
        self, context: Any, packets: list[Any], shown: ShownFrames
    ) -> tuple[int, bool, bool]:
        """Decode until nothing more is wanted; the orientation of the first frame."""
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        turn = (0, False, False)

        def render(frame: Any) -> np.ndarray:
            return display.arrange(display.to_rgb(reformatter, frame, self.size), turn)

        for packet in [*packets, None]:  # None: what the decoder still holds
            for frame in context.decode(packet):
                self._check_time()
                self._check_size(frame.width, frame.height)
                if frame.is_corrupt:
                    raise VideoError(f"frame {self.count} is damaged")
                if self.collector is None:
                    shown.start_at(frame.pts)
                    turn = display.orientation(display.display_matrix(frame))
                    self.collector = _Collector(shown, self.choose, render)
                self.count += 1
                if not self.collector.add(frame, self.count - 1):
                    return turn
        return turn

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.frame_pixels:
            raise OversizedVideoError(
                f"{width} x {height} pixels, more than the limit of {self.limits.frame_pixels} "
                "(limits.frame_pixels)"
            )

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise SlowVideoError(too_slow(self.seconds))


def _all_packets(opened: Any) -> Iterator[Any]:
    """The packets of the streams that were there at the start."""
    try:
        yield from (packet for packet in opened.demux() if packet.size)
    except IndexError:
        # At its end, PyAV (18.1) stumbles over streams that appeared after the start.
        return


def too_slow(seconds: float) -> str:
    """The message of a SlowVideoError."""
    return (
        f"decoding takes longer than the {seconds:g} s allowed (limits.decode_s; for a clip that "
        "is loaded, at most half of data.timeout_s)"
    )


def _truncated(count: int, total: int, what: str | None = None) -> TruncatedVideoError:
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
