"""Decoding of chosen frames of a video: the frames that the ffmpeg command shows.

`decode_clip` runs in the calling process. Files that may be hostile go through
`svilm_fast.data.decode_process`, which calls it in a limited process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data import containers, display
from svilm_fast.data.bitstreams import NotSeparable
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.demux import (
    MISSING_FRAMES,
    MISSING_SHARE,
    Budget,
    OpenVideo,
    open_video,
    truncated,
)
from svilm_fast.data.errors import (
    DataError,
    EmptyVideoError,
    OversizedVideoError,
    TruncatedVideoError,
    VideoError,
)
from svilm_fast.data.groups import Groups, chosen
from svilm_fast.data.timeline import ShownFrames, Timeline

Choose = Callable[[Timeline], np.ndarray]
# Is given each chosen frame uint8 [h, w, 3] in order, and how often it was chosen.
FrameSink = Callable[[np.ndarray, int], None]


@dataclass
class DecodedClip:
    """Frames of one video."""

    frames: np.ndarray  # uint8 [n, h, w, 3], RGB, as displayed
    index: np.ndarray  # int64 [n], their places in the video
    timeline: Timeline
    fps: float  # 0.0 where the container does not say
    source_size: tuple[int, int]  # width, height as displayed, before scaling
    # Why every frame was decoded although groups of pictures were to be left out; None: they were.
    fallback: str | None = None

    @property
    def total(self) -> int:
        """Frames of the whole video."""
        return self.timeline.total

    @property
    def notes(self) -> tuple[str, ...]:
        """What is counted in a loader's report."""
        if self.fallback is None:
            return ()
        return (f"clips decoded from their first frame ({self.fallback})",)


@dataclass(frozen=True)
class ReadRequest:
    """What a library other than PyAV is to decode."""

    data: bytes
    times: np.ndarray  # float64 [total], when each shown frame begins, seconds
    places: Sequence[int]  # of the wanted frames, ascending, without repeats
    turn: tuple[int, bool, bool]  # as `display.orientation`
    stream_index: int


class FrameReader(Protocol):
    """Decodes chosen frames with a library other than PyAV."""

    name: str

    def __call__(self, request: ReadRequest) -> Sequence[np.ndarray]:
        """The frames uint8 [h, w, 3], RGB, upright, of any size. Raises VideoError."""
        ...


def every_frame(timeline: Timeline) -> np.ndarray:
    """A choice for `decode_clip`: all frames."""
    return np.arange(timeline.total, dtype=np.int64)


class _LastFrame:
    """A choice for `decode_clip` that makes it decode everything: the last frame."""

    decodes_everything = True

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return np.array([timeline.total - 1], dtype=np.int64)


last_frame = _LastFrame()


def decode_clip(
    data: bytes,
    choose: Choose,
    *,
    short_side: int | None = None,
    limits: LimitsConfig | None = None,
    seconds: float | None = None,
    groups: bool = True,
    reader: FrameReader | None = None,
    sink: FrameSink | None = None,
) -> DecodedClip:
    """Decode the frames `choose(timeline)` (ascending, repeats allowed) of a video file in memory.

    The frames are those that the ffmpeg command shows of the file's default video stream: edit
    lists, turns, mirroring and the aspect of pixels are applied. They are scaled down so that the
    shorter side is `short_side` pixels; smaller ones stay. `seconds` is the longest that decoding
    may take (default: `limits.decode_s`); it is checked between packets.

    With `groups`, only the groups of pictures are decoded that hold chosen frames. The frames are
    the same, bit for bit; damage elsewhere in the file is not noticed. Where the file's headers do
    not prove that they are the same, everything up to the last chosen frame is decoded, and
    `fallback` of the result says why. A choice with the attribute `decodes_everything` (such as
    `last_frame`) switches groups off.

    A `reader` decodes the chosen frames with another library; its pixels may differ slightly.

    A `sink` is given the frames one by one, and the result holds none, so that memory does not grow
    with the video. The video is then decoded from its first frame, without a `reader`. The time
    that the sink takes does not count.

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
    groups = groups and sink is None and not getattr(choose, "decodes_everything", False)
    budget = Budget(limits, seconds)
    if sink is not None:
        sink = _untimed(sink, budget)
    return _Decoder(data, container, choose, short_side, budget, groups, reader, sink).run()


def _untimed(sink: FrameSink, budget: Budget) -> FrameSink:
    def timed(image: np.ndarray, times: int) -> None:
        started = time.monotonic()
        sink(image, times)
        budget.deadline += time.monotonic() - started

    return timed


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height after scaling down to `short_side`; unchanged where already smaller."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    ratio = short_side / min(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


class _Collector:
    """Keeps the chosen frames while frames stream past in order."""

    def __init__(
        self,
        shown: ShownFrames,
        choose: Choose,
        render: Callable[[Any], np.ndarray],
        sink: FrameSink | None = None,
    ):
        self.shown, self.render, self.sink = shown, render, sink
        self.timeline = shown.timeline()
        self.index = np.asarray(choose(self.timeline), dtype=np.int64)
        if self.index.size == 0 or self.index[0] < 0 or np.any(np.diff(self.index) < 0):
            raise DataError("the chosen frames must be ascending and at least one")
        self.wanted = sorted(set(self.index.tolist()), reverse=True)  # the next one is the last
        self._images: np.ndarray | None = None  # the result, in the order of `index`
        self._filled = 0
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

    def add_wanted(self, frame: Any) -> None:
        """Take the next wanted frame; nothing between two wanted frames is given."""
        self._latest, self._image = frame, None
        self.place = self.wanted[-1]
        self._keep_latest()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and their places; the last decoded frame stands in for a few lost ones."""
        total = self.timeline.total
        missing = min(self.index[-1], total - 1) - self.place
        if missing > max(MISSING_FRAMES, math.ceil(MISSING_SHARE * total)):
            raise truncated(self.place + 1, total)
        while self.wanted:
            self._keep_latest()
        if self.sink is not None:
            return np.empty((0, 0, 0, 3), np.uint8), np.minimum(self.index, self.place)
        assert self._images is not None
        return self._images, np.minimum(self.index, self.place)

    def _keep_latest(self) -> None:
        if self._image is None:
            self._image = self.render(self._latest)
        place = self.wanted.pop()
        if self.sink is not None:
            first, last = np.searchsorted(self.index, (place, place + 1))
            self.sink(self._image, int(last - first))
            return
        image, count = self._image, len(self.index)
        if self._images is None:
            self._images = np.empty((count, *image.shape), dtype=np.uint8)
        while self._filled < count and self.index[self._filled] == place:
            self._images[self._filled] = image  # at once, while the image is in the CPU's cache
            self._filled += 1


class _Decoder:
    """One decoding of one file."""

    def __init__(
        self,
        data: bytes,
        container: containers.Container,
        choose: Choose,
        short_side: int | None,
        budget: Budget,
        groups: bool,
        reader: FrameReader | None,
        sink: FrameSink | None = None,
    ) -> None:
        self.data, self.container, self.choose, self.sink = data, container, choose, sink
        self.short_side, self.budget, self.groups, self.reader = short_side, budget, groups, reader
        self.fallback: str | None = None
        self.collector: _Collector | None = None
        self.count = 0  # frames decoded
        self.turn = (0, False, False)

    def run(self) -> DecodedClip:
        import av

        try:
            try:
                return self._decode()
            except NotSeparable as reason:
                self.fallback, self.groups = str(reason), False
                self.collector, self.count = None, 0
                return self._decode()
        except (av.FFmpegError, OSError, ValueError, MemoryError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            self.budget.check_time()  # the bytes may have ended for that reason
            if isinstance(error, MemoryError):
                raise OversizedVideoError(
                    f"decoding needs more than the {self.budget.limits.memory_bytes} bytes of "
                    "memory allowed (limits.memory_bytes)"
                ) from None
            what = getattr(error, "strerror", None) or single_line(error)
            if self.collector is not None:
                raise truncated(self.count, self.collector.timeline.total, what) from None
            if self.container is containers.MOV and containers.top_level_boxes(self.data)[1]:
                message = f"the file is truncated ({len(self.data)} bytes)"
                raise TruncatedVideoError(message) from None
            raise VideoError(f"the video cannot be decoded: {what}") from None
        finally:
            self.collector = None  # it refers to this object; its frames must not wait for gc

    def _decode(self) -> DecodedClip:
        with open_video(self.data, self.container, self.budget) as video:
            size = scaled_size(*video.size, self.short_side)
            render = self._renderer(size)
            if self.reader is not None:
                self._read(video, size)
            elif (groups := self._groups_of(video)) is not None:
                self._decode_groups(video, groups, render)
            else:
                self._decode_everything(video, render)
        if self.collector is None:
            raise EmptyVideoError("no frame can be decoded")
        frames, index = self.collector.finish()
        width, height = video.size
        source = (height, width) if self.turn[0] % 2 else (width, height)
        return DecodedClip(frames, index, self.collector.timeline, video.fps, source, self.fallback)

    def _renderer(self, size: tuple[int, int]) -> Callable[[Any], np.ndarray]:
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        return lambda frame: display.arrange(display.to_rgb(reformatter, frame, size), self.turn)

    def _groups_of(self, video: OpenVideo) -> Groups | None:
        """The stream's groups, or None where everything has to be decoded."""
        if not self.groups:
            return None
        try:
            if not video.shown.timed:
                raise NotSeparable("packets without times")
            settled = (
                self.container is containers.MOV and containers.sample_descriptions(self.data) <= 1
            )
            return Groups(video.packets, video.context, settled=settled)
        except NotSeparable as reason:
            self.fallback = str(reason)
            return None

    def _check(self, frame: Any) -> None:
        self.budget.check_time()
        self.budget.check_size(frame.width, frame.height)

    def _begin(self, frame: Any, shown: ShownFrames, render: Callable[[Any], np.ndarray]) -> None:
        """Choose the frames, once the first frame is there."""
        shown.start_at(frame.pts)
        self.turn = display.orientation(display.display_matrix(frame))
        self.collector = _Collector(shown, self.choose, render, self.sink)

    def _decode_everything(self, video: OpenVideo, render: Callable[[Any], np.ndarray]) -> None:
        """Decode from the first frame until nothing more is wanted."""
        for packet in [*video.packets, None]:  # None: what the decoder still holds
            for frame in video.context.decode(packet):
                self._check(frame)
                if frame.is_corrupt:
                    raise VideoError(f"frame {self.count} is damaged")
                if self.collector is None:
                    self._begin(frame, video.shown, render)
                self.count += 1
                assert self.collector is not None
                if not self.collector.add(frame, self.count - 1):
                    return

    def _decode_groups(
        self, video: OpenVideo, groups: Groups, render: Callable[[Any], np.ndarray]
    ) -> None:
        def choose(first: Any) -> list[int]:
            self._begin(first, video.shown, render)
            assert self.collector is not None
            return self._times(video.shown, self.collector)

        for frame in chosen(groups, video.context, choose, self._check):
            assert self.collector is not None
            self.collector.add_wanted(frame)

    def _times(self, shown: ShownFrames, collector: _Collector) -> list[int]:
        """The times of the wanted frames in ticks, ascending."""
        assert shown.pts is not None
        places = collector.wanted[::-1]
        if places[-1] >= shown.total:
            raise NotSeparable("a frame behind the last one")
        return shown.pts[places].tolist()

    def _read(self, video: OpenVideo, size: tuple[int, int]) -> None:
        """Let the other library decode what is wanted; PyAV decodes the first frame."""
        assert self.reader is not None
        first = self._first_frame(video)
        if first is None:
            return
        if not video.shown.timed or first.pts is None:
            raise VideoError(
                f"data.decoder={self.reader.name} needs files whose frames have times: use "
                "data.decoder=pyav"
            )
        upright = self._resizer(size)
        self._begin(first, video.shown, upright)
        assert self.collector is not None
        assert video.shown.pts is not None
        request = ReadRequest(
            data=self.data,
            times=video.shown.pts * float(video.time_base),
            places=self.collector.wanted[::-1],
            turn=self.turn,
            stream_index=video.stream_index,
        )
        for image in self.reader(request):
            self.budget.check_time()
            self.budget.check_size(image.shape[1], image.shape[0])
            self.collector.add_wanted(image)

    def _resizer(self, size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
        """Resizes upright images to the displayed size."""
        from av.video.frame import VideoFrame
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()

        def resized(image: np.ndarray) -> np.ndarray:
            upright = size[::-1] if self.turn[0] % 2 else size
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            return display.to_rgb(reformatter, frame, upright)

        return resized

    def _first_frame(self, video: OpenVideo) -> Any:
        for packet in [*video.packets, None]:
            for frame in video.context.decode(packet):
                self._check(frame)
                return frame
        return None
