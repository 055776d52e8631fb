"""Odd video files, encoded and remuxed with PyAV; frame f of a ramp is grey 16 f + phase."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def encode(
    frames: np.ndarray,
    container: str = "mp4",
    codec: str = "libx264",
    *,
    times: Iterable[int] | None = None,
    rate: int = 25,
    aspect: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    muxer: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A video file; `times` are the frames' numbers on the grid of `rate` per second."""
    target = io.BytesIO()
    with av.open(target, "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt, stream.thread_count = pix_fmt, 1
        if codec == "libx264":
            options = {"crf": "10", "preset": "ultrafast", **options}
        else:
            stream.bit_rate = 1_000_000
        stream.options = options
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for image, time in zip(frames, times or range(len(frames))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


def remux(
    data: bytes, container: str, change: Callable[[list[Any]], list[Any]], **muxer: str
) -> bytes:
    """The same packets in another container; `change` gets them and returns those to write."""
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(target, "w", format=container, options=muxer) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        for packet in change(packets):
            packet.stream = stream
            output.mux(packet)
    return target.getvalue()


def packet(like: Any, content: bytes) -> Any:
    """A packet with other content and the times of `like`."""
    made = av.Packet(content)
    made.pts, made.dts, made.time_base = like.pts, like.dts, like.time_base
    made.is_keyframe = like.is_keyframe
    return made


def join(parts: Iterable[bytes], container: str) -> bytes:
    """The packets of several files in one stream, with their own times."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as output:
        stream = None
        for part in parts:
            with av.open(io.BytesIO(part)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                for each in source.demux(source.streams.video[0]):
                    if each.size:
                        each.stream = stream
                        output.mux(each)
    return target.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The MP4 file with the display matrix [[a, b], [c, d]] in its track's header."""
    place = data.index(IDENTITY, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:place] + matrix + data[place + len(matrix) :]


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_cover(data: bytes, picture: bytes) -> bytes:
    """The MP4 file (its index last) with a PNG as cover art before its track."""
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    cover = box(b"covr", box(b"data", struct.pack(">II", 14, 0), picture))
    user_data = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", cover)))
    moov = data.index(b"moov") - 4
    assert data.index(b"mdat") < moov
    (size,) = struct.unpack(">I", data[moov : moov + 4])
    content = data[moov + 8 : moov + size]
    header = content.index(b"trak") - 4
    return data[:moov] + box(b"moov", content[:header], user_data, content[header:])


def png(width: int, height: int) -> bytes:
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = width, height, "rgb24"
    context.time_base = Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in context.encode(frame) + context.encode(None))


def gif_header(width: int, height: int) -> bytes:
    """A GIF whose header states this size; its one picture is a single pixel."""
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\0\x0a\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    )
