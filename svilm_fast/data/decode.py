"""Decoding of chosen frames of a video, with limits, by PyAV or by OpenCV where PyAV is missing."""

from __future__ import annotations

import importlib.util
import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.errors import (
    DataError,
    EmptyVideoError,
    OversizedVideoError,
    TruncatedVideoError,
    VideoError,
    one_line,
)

# Containers count a few frames that an edit list hides; more missing than this is truncation.
_MISSING_FRAMES = 2
_MISSING_SHARE = 0.02

Choose = Callable[[int], np.ndarray]


@dataclass
class DecodedClip:
    """Frames of one video."""

    frames: np.ndarray  # uint8 [n, h, w, 3], RGB
    index: np.ndarray  # int64 [n], their places in the video
    total: int  # frames of the whole video
    fps: float  # 0.0 where the container does not say
    source_size: tuple[int, int]  # width, height as displayed, before scaling


def every_frame(total: int) -> np.ndarray:
    """A choice for `decode_clip`: all frames."""
    return np.arange(total, dtype=np.int64)


def last_frame(total: int) -> np.ndarray:
    """A choice for `decode_clip` that makes it decode everything: the last frame."""
    return np.array([total - 1], dtype=np.int64)


def decode_clip(
    data: bytes,
    choose: Choose,
    *,
    short_side: int | None = None,
    limits: LimitsConfig | None = None,
    decoder: str = "auto",
) -> DecodedClip:
    """Decode the frames `choose(total)` (ascending, repeats allowed) of a video file in memory.

    Frames are scaled down so that the shorter side is `short_side` pixels; smaller ones stay.
    Raises VideoError or one of its kinds: TruncatedVideoError, EmptyVideoError,
    OversizedVideoError, or whatever `choose` raises.
    """
    limits = limits or LimitsConfig()
    if len(data) > limits.video_bytes:
        raise OversizedVideoError(
            f"{len(data)} bytes, and {limits.video_bytes} are allowed (limits.video_bytes)"
        )
    if not data:
        raise EmptyVideoError("the video file is empty (0 bytes)")
    if decoder == "auto":
        decoder = "pyav" if importlib.util.find_spec("av") else "cv2"
    decode = _decode_cv2 if decoder == "cv2" else _decode_pyav
    return decode(data, choose, short_side, limits)


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height after scaling down to `short_side`; unchanged where already smaller."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    ratio = short_side / min(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _check_size(width: int, height: int, frames: int, limits: LimitsConfig) -> None:
    if width * height > limits.frame_pixels:
        raise OversizedVideoError(
            f"{width} x {height} pixels, and {limits.frame_pixels} are allowed "
            "(limits.frame_pixels)"
        )
    if frames > limits.frames:
        raise OversizedVideoError(
            f"{frames} frames, and {limits.frames} are allowed (limits.frames)"
        )


class _Collector:
    """Keeps the chosen frames while frames stream past in order."""

    def __init__(self, total: int, choose: Choose) -> None:
        self.total = total
        self.index = np.asarray(choose(total), dtype=np.int64)
        if self.index.size == 0 or self.index[0] < 0 or np.any(np.diff(self.index) < 0):
            raise DataError("the chosen frames must be ascending and at least one")
        self.wanted = set(self.index.tolist())
        self.last = int(self.index[-1])
        self.kept: dict[int, np.ndarray] = {}
        self.count = 0

    def stack(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames and their indices; the last decoded frame stands in for a few hidden ones."""
        missing = self.last + 1 - self.count
        if self.count == 0:
            raise EmptyVideoError("no frame can be decoded")
        if missing > max(_MISSING_FRAMES, math.ceil(_MISSING_SHARE * self.total)):
            raise TruncatedVideoError(
                f"only {self.count} of {self.total} frames can be decoded: the file is truncated "
                "or damaged"
            )
        index = np.minimum(self.index, max(self.kept))
        frames = np.stack([self.kept[i] for i in index.tolist()])
        return frames, index


def _decode_pyav(
    data: bytes, choose: Choose, short_side: int | None, limits: LimitsConfig
) -> DecodedClip:
    import av
    from av.video.reformatter import VideoReformatter

    collector: _Collector | None = None
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.video:
                raise EmptyVideoError("the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("the video's codec is unknown: re-encode it, for example as H.264")
            # One thread: open containers with decoder threads hang forked children (PyAV 1962).
            stream.thread_count = 1
            width, height = stream.codec_context.width, stream.codec_context.height
            total = stream.frames or _count_packets(container, stream, limits.frames)
            if total == 0 or width * height == 0:
                raise EmptyVideoError("the video stream has no frames")
            _check_size(width, height, total, limits)
            fps = float(stream.average_rate or 0.0)
            collector = _Collector(total, choose)
            reformatter = VideoReformatter()
            size = scaled_size(width, height, short_side)
            latest = None
            for frame in container.decode(stream):
                if frame.width * frame.height > limits.frame_pixels:
                    _check_size(frame.width, frame.height, 0, limits)
                if frame.is_corrupt:
                    raise VideoError(f"frame {collector.count} is damaged")
                wanted = collector.count in collector.wanted
                if wanted:
                    collector.kept[collector.count] = _to_rgb(reformatter, frame, size)
                latest = None if wanted else frame
                collector.count += 1
                if collector.count > collector.last:
                    break
            if latest is not None and 0 < collector.count <= collector.last:
                collector.kept[collector.count - 1] = _to_rgb(reformatter, latest, size)
    except (av.FFmpegError, OSError, ValueError, MemoryError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        what = getattr(error, "strerror", None) or one_line(error)
        if collector is not None:
            raise TruncatedVideoError(
                f"only {collector.count} of {collector.total} frames can be decoded ({what}): the "
                "file is truncated or damaged"
            ) from None
        if _ends_inside_a_box(data):
            raise TruncatedVideoError(f"the file is truncated ({len(data)} bytes)") from None
        raise VideoError(f"the video cannot be decoded: {what}") from None
    frames, index = collector.stack()
    turned = frames.shape[1:3] != (size[1], size[0])  # a quarter turn swaps the sides
    return DecodedClip(frames, index, total, fps, (height, width) if turned else (width, height))


def _ends_inside_a_box(data: bytes) -> bool:
    """Whether the top-level boxes of an MP4 or MOV file reach beyond its end."""
    if data[4:8] != b"ftyp":
        return False
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            return False
        position += size
    return position != len(data)


def _count_packets(container: object, stream: object, limit: int) -> int:
    """Frames of a container that does not declare them; stops counting beyond the limit."""
    count = 0
    for packet in container.demux(stream):  # type: ignore[attr-defined]
        count += bool(packet.size)
        if count > limit:
            break
    container.seek(0)  # type: ignore[attr-defined]
    return count


def _to_rgb(reformatter: object, frame: object, size: tuple[int, int]) -> np.ndarray:
    options = {"width": size[0], "height": size[1], "format": "rgb24", "interpolation": "AREA"}
    if "threads" in (type(reformatter).reformat.__doc__ or ""):  # type: ignore[attr-defined]
        options["threads"] = 1  # starting scaler threads takes longer than scaling small frames
    scaled = reformatter.reformat(frame, **options)  # type: ignore[attr-defined]
    image = scaled.to_ndarray()
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.rot90(image, quarter_turns) if quarter_turns else image


def _decode_cv2(
    data: bytes, choose: Choose, short_side: int | None, limits: LimitsConfig
) -> DecodedClip:
    try:
        import cv2
    except ImportError:
        raise DataError(
            "no video decoder: install PyAV (pip install av) or opencv-python-headless"
        ) from None
    # OpenCV reads files only; the file is gone when the block ends.
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        capture = cv2.VideoCapture(file.name)
        try:
            if not capture.isOpened():
                raise VideoError("the video cannot be opened by OpenCV")
            width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
            height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if total <= 0 or width * height <= 0:
                raise EmptyVideoError("the video stream has no frames")
            _check_size(width, height, total, limits)
            collector = _Collector(total, choose)
            size = scaled_size(width, height, short_side)
            latest = None
            while collector.count <= collector.last:
                ok, image = capture.read()
                if not ok:
                    break
                wanted = collector.count in collector.wanted
                if wanted:
                    collector.kept[collector.count] = _cv2_rgb(cv2, image, size)
                latest = None if wanted else image
                collector.count += 1
            if latest is not None and collector.count <= collector.last:
                collector.kept[collector.count - 1] = _cv2_rgb(cv2, latest, size)
            fps = float(capture.get(cv2.CAP_PROP_FPS))
        finally:
            capture.release()
    frames, index = collector.stack()
    return DecodedClip(frames, index, total, fps if math.isfinite(fps) else 0.0, (width, height))


def _cv2_rgb(cv2: object, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[attr-defined]
    return np.ascontiguousarray(image[:, :, ::-1])
