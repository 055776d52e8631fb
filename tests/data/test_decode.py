"""Decoding gives the frames that were asked for, and a typed error for whatever is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame, last_frame
from svilm_fast.data.errors import (
    EmptyVideoError,
    OversizedVideoError,
    ShortClipError,
    TruncatedVideoError,
    VideoError,
)
from svilm_fast.data.sampling import choose_frames

IDENTITY = bytes.fromhex("00010000 00000000 00000000 00000000 00010000")
QUARTER_TURN = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000")


def _brightness(frames):
    return frames[:, 8:-8, 8:-8].mean(axis=(1, 2, 3))


def test_the_chosen_frames_come_back_in_order_with_repeats(videos):
    clip = decode_clip(videos[0], lambda total: np.array([0, 3, 3, 11]))
    assert clip.frames.shape == (4, 32, 40, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.total, clip.fps, clip.source_size) == (12, 8.0, (40, 32))
    np.testing.assert_allclose(_brightness(clip.frames), [0, 48, 48, 176], atol=4)


def test_scaling_keeps_the_aspect_and_never_enlarges(videos):
    assert decode_clip(videos[0], last_frame, short_side=16).frames.shape == (1, 16, 20, 3)
    assert decode_clip(videos[0], last_frame, short_side=99).frames.shape == (1, 32, 40, 3)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_every_truncation_is_a_video_error(make_video, make_ramp, share, options):
    data = make_video(make_ramp(30), **options)
    with pytest.raises(VideoError) as caught:
        decode_clip(data[: int(share * len(data))], every_frame)
    assert "\n" not in str(caught.value)


def test_truncation_behind_the_header_tells_how_much_is_left(make_video, make_ramp):
    data = make_video(make_ramp(30), movflags="faststart")
    with pytest.raises(TruncatedVideoError, match=r"only \d+ of 30 frames"):
        decode_clip(data[: int(0.8 * len(data))], every_frame)


def test_damaged_frames_are_found(make_video):
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3)).astype(np.uint8)
    data = bytearray(make_video(noise))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    with pytest.raises(VideoError):
        decode_clip(bytes(data), every_frame)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyVideoError),
        (b"not a video at all" * 20, VideoError),
        (bytes(1000), VideoError),
    ],
)
def test_other_files_are_refused(data, error):
    with pytest.raises(error):
        decode_clip(data, every_frame)


def test_a_sound_file_has_no_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(EmptyVideoError, match="no video stream"):
        decode_clip(path.read_bytes(), every_frame)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"frame_pixels": 1000}, "40 x 32 pixels"),
        ({"frames": 11}, "more than 11 frames"),
        ({"video_bytes": 100}, "more than the limit of 100"),
    ],
)
def test_limits_refuse_before_decoding(videos, limits, message):
    with pytest.raises(OversizedVideoError, match=message):
        decode_clip(videos[0], every_frame, limits=LimitsConfig(**limits))


def test_containers_without_a_frame_count_are_counted(make_video, make_ramp):
    data = make_video(make_ramp(9), movflags="frag_keyframe+empty_moov")
    clip = decode_clip(data, every_frame)
    assert (clip.total, len(clip.frames)) == (9, 9)
    with pytest.raises(OversizedVideoError):
        decode_clip(data, every_frame, limits=LimitsConfig(frames=8))


def test_rotated_phone_videos_stand_upright(make_video):
    frames = np.zeros((4, 32, 48, 3), dtype=np.uint8)
    frames[:, :16, :16] = 255  # top left, seen at the top right after a turn to the right
    data = make_video(frames)
    assert data.count(IDENTITY) >= 2  # movie and track header; the track's turns the picture
    place = data.index(IDENTITY, data.index(b"tkhd"))
    data = data[:place] + QUARTER_TURN + data[place + len(QUARTER_TURN) :]
    clip = decode_clip(data, every_frame, short_side=16)
    assert clip.frames.shape == (4, 24, 16, 3)
    assert clip.source_size == (32, 48)
    corner = clip.frames[:, :8, 8:].mean()
    assert corner > 200
    assert clip.frames.mean() < corner / 4


def test_evaluation_takes_the_middle_of_each_segment():
    assert choose_frames(12, 4, None).tolist() == [1, 4, 7, 10]
    assert choose_frames(8, 8, None).tolist() == list(range(8))
    assert choose_frames(100, 1, None).tolist() == [50]


def test_training_draws_every_frame_of_a_segment_and_no_other():
    lows = choose_frames(13, 4, np.zeros(4)).tolist()
    highs = choose_frames(13, 4, np.full(4, 0.999)).tolist()
    assert lows == [0, 3, 6, 9]
    assert highs == [2, 5, 8, 12]


def test_short_clips_repeat_frames_or_are_skipped():
    assert choose_frames(2, 4, None).tolist() == [0, 0, 1, 1]
    assert choose_frames(1, 3, np.full(3, 0.5)).tolist() == [0, 0, 0]
    with pytest.raises(ShortClipError, match="3 frames, 4 are needed"):
        choose_frames(3, 4, None, short_clip="skip")
