"""Frames to H.264 in MP4, in memory."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache
from typing import cast

import av
import numpy as np

_ENCODERS = ("libx264", "libopenh264", "h264")


@cache
def h264_encoder() -> str:
    """The first software H.264 encoder of this PyAV; RuntimeError where there is none."""
    for name in _ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except av.FFmpegError:
            continue
        return name
    raise RuntimeError(
        f"this PyAV ({av.__version__}) has no H.264 encoder ({', '.join(_ENCODERS)}): "
        "install the wheel from the package index with `pip install --force-reinstall av`"
    )


def encode_mp4(frames: np.ndarray, fps: float, quality: int = 18) -> bytes:
    """MP4 bytes of `frames` uint8 [F, H, W, 3]; the same bytes for the same frames and library."""
    buffer = io.BytesIO()
    encoder = h264_encoder()
    height, width = frames.shape[1:3]
    # One thread and no version marks: equal frames give equal bytes.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = cast(
            "av.VideoStream",
            container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001)),
        )
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if encoder == "libx264":
            # No B frames: every frame is decoded as soon as it is read. No macroblock tree: on
            # small frames x264's reads uninitialised memory, and 3 encodings in 100 differ.
            options = {"preset": "veryfast", "crf": str(quality), "bf": "0"}
            options["x264-params"] = "mbtree=0"
            stream.codec_context.options = options
        else:
            stream.bit_rate = int(height * width * fps * 2.0 ** (-quality / 6))
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
