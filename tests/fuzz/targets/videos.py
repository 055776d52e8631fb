"""Videos: damaged files in several containers, and texts named as videos."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import av
import numpy as np
from hypothesis import strategies as st

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import every_frame
from svilm_fast.data.decode_process import decode_limited

from ..engine import Target
from ..texts import damaged

_KINDS = {
    "mp4": "libx264", "matroska": "libx264", "avi": "mpeg4", "mov": "mjpeg", "mpegts": "mpeg2video",
    "webm": "libvpx-vp9", "gif": "gif", "flv": "flv", "mpeg": "mpeg1video", "ogg": "libtheora",
}  # fmt: skip
_PRETENDERS = [
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    b"a=rtpmap:96 H264/90000\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    b"<?xml version='1.0'?><MPD><Period/></MPD>",
    b"\x89PNG\r\n\x1a\n",
    b"",
]
_LIMITS = LimitsConfig(
    decode_s=20.0, memory_bytes=2**30, frame_pixels=2**20, frames=500, video_bytes=2**20
)


@functools.cache
def seeds() -> dict[str, bytes]:
    """Six frames of 48 x 32 pixels in every container that this FFmpeg can write."""
    made = {}
    levels = (40 * np.arange(6)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (6, 32, 48, 3)).copy()
    frames[:, 8:16, 8:24, 0] = 255
    for kind, codec in _KINDS.items():
        out = io.BytesIO()
        try:
            with av.open(out, "w", format=kind) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height, stream.thread_count = 48, 32, 1
                stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
                for frame in frames:
                    image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    container.mux(stream.encode(image.reformat(format=stream.pix_fmt)))
                container.mux(stream.encode())
        except (av.FFmpegError, ValueError):  # this build lacks the encoder
            continue
        made[kind] = out.getvalue()
    return made


@st.composite
def _cases(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 15)) == 0:
        return draw(damaged(draw(st.sampled_from(_PRETENDERS))))
    data = seeds()[draw(st.sampled_from(sorted(seeds())))]
    if draw(st.integers(0, 9)) == 0:
        other = seeds()[draw(st.sampled_from(sorted(seeds())))]
        data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    if draw(st.booleans()):
        # Headers determine most of a decoder's behaviour.
        head = draw(st.integers(8, 400))
        return draw(damaged(data[:head])) + data[head:]
    return draw(damaged(data))


def check(data: bytes, folder: Path) -> None:
    clip = decode_limited(data, every_frame, limits=_LIMITS)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.ndim == 4
    assert clip.frames.shape[3] == 3
    count, height, width = clip.frames.shape[:3]
    assert 0 < count <= _LIMITS.frames
    assert 0 < width * height <= _LIMITS.frame_pixels
    assert len(clip.index) == count == clip.total
    assert (np.diff(clip.index) >= 0).all()
    assert 0 <= clip.index[0] <= clip.index[-1] < clip.total
    assert np.isfinite(clip.fps)
    assert clip.fps >= 0


TARGET = Target("videos", _cases(), check, full=2000, short=20, batch=100, seconds=60, shrink=False)
