"""Streaming of a video's frames: each once, in order, few in memory, limits and errors as usual."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.data import decode_process
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.decode_process import stream_limited
from svilm_fast.data.errors import ShortClipError, SlowVideoError, VideoError
from svilm_fast.data.sampling import AtRate, duration_of
from svilm_fast.data.timeline import Timeline
from svilm_fast.data.world.video import encode_mp4


def numbered_video(count: int, fps: float = 8.0) -> bytes:
    """Frames of rising brightness."""
    levels = np.linspace(20, 235, count).astype(np.uint8)
    return encode_mp4(np.broadcast_to(levels[:, None, None, None], (count, 32, 32, 3)).copy(), fps)


def streamed(data: bytes, choose, **options):
    """Chunks, and the clip that the generator returns."""
    chunks = []
    stream = stream_limited(data, choose, **options)
    while True:
        try:
            chunks.append(next(stream))
        except StopIteration as end:
            return chunks, end.value


def test_the_stream_has_the_frames_of_an_ordinary_decoding():
    data = numbered_video(50)
    chunks, clip = streamed(data, every_frame, chunk=16)
    assert [len(chunk) for chunk in chunks] == [16, 16, 16, 2]
    expected = decode_clip(data, every_frame)
    assert (np.concatenate(chunks) == expected.frames).all()
    assert (clip.index == expected.index).all()
    assert clip.timeline == expected.timeline
    assert not clip.frames.size


def test_frames_that_are_chosen_twice_come_twice():
    data = numbered_video(10, fps=8.0)
    chunks, _ = streamed(data, AtRate(16.0), chunk=100)
    frames = np.concatenate(chunks)
    assert len(frames) == 20
    assert (frames[0::2] == frames[1::2]).all()
    assert (frames[::2] == decode_clip(data, every_frame).frames).all()


def test_every_frame_is_rendered_once(monkeypatch):
    seen = []
    data = numbered_video(30)
    decode_clip(data, AtRate(4.0), sink=lambda image, times: seen.append((image.mean(), times)))
    assert len(seen) == 15
    assert all(times == 1 for _, times in seen)
    assert (np.diff([mean for mean, _ in seen]) > 0).all()


def test_a_consumer_may_take_longer_than_the_decoding(monkeypatch):
    import time

    sink_time = 0.4
    limits = LimitsConfig(decode_s=1.0)
    decode_clip(
        numbered_video(6), every_frame, limits=limits, sink=lambda *_: time.sleep(sink_time)
    )


def test_errors_name_what_is_wrong_and_the_process_goes_on():
    data = numbered_video(40)
    with pytest.raises(VideoError):
        streamed(data[: len(data) // 2], every_frame)
    with pytest.raises(ShortClipError, match="unknown"):
        AtRate(5.0)(Timeline(10))
    chunks, _ = streamed(data, every_frame)
    assert sum(map(len, chunks)) == 40


def test_a_process_that_falls_silent_is_ended(monkeypatch):
    monkeypatch.setattr(decode_process, "_GRACE_S", 0.1)
    stream = stream_limited(numbered_video(40), every_frame, limits=LimitsConfig(decode_s=0.1))
    monkeypatch.setattr(decode_process.Connection, "poll", lambda self, timeout=0.0: False)
    with pytest.raises(SlowVideoError, match=r"0\.1 s allowed"):
        next(stream)


def test_a_stream_that_is_not_read_to_its_end_costs_nobody():
    stream = stream_limited(numbered_video(40), every_frame, chunk=4)
    next(stream)
    stream.close()
    chunks, _ = streamed(numbered_video(8), every_frame)
    assert sum(map(len, chunks)) == 8


def test_frames_at_a_rate():
    constant = Timeline(12, period=1 / 24)
    assert AtRate(24.0)(constant).tolist() == list(range(12))
    assert AtRate(8.0)(constant).tolist() == [0, 3, 6, 9]
    assert AtRate(None)(constant).tolist() == list(range(12))
    assert AtRate(0.1)(constant).tolist() == [0]
    varying = Timeline(3, edges=np.array([1.0, 1.5, 3.0, 3.5]))
    assert duration_of(varying) == 2.5
    # At 0, 0.5, 1, 1.5 and 2 s after the first frame.
    assert AtRate(2.0)(varying).tolist() == [0, 1, 1, 1, 2]
    with pytest.raises(ShortClipError, match="varies"):
        AtRate(None)(varying)
