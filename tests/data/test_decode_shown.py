"""Decoding gives the frames that the ffmpeg command shows, however the file stores them."""

from __future__ import annotations

import io
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from svilm_fast.data.decode import decode_clip, every_frame, last_frame
from svilm_fast.data.demux import all_packets
from svilm_fast.data.errors import EmptyVideoError, TruncatedVideoError
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.timeline import ShownFrames


def _numbers(clip):
    """The number of every frame of a ramp of at most 16."""
    return np.rint(clip.frames[:, 8:-8, 8:-8].mean(axis=(1, 2, 3)) / 16).astype(int).tolist()


B_FRAMES = {"g": "4", "bf": "2", "x264-params": "scenecut=0:b-adapt=0:keyint=4:min-keyint=4"}


@pytest.fixture(scope="module")
def film(odd, make_ramp):
    """Sixteen frames with a key frame every four and B-frames between."""
    return odd.encode(make_ramp(16), **B_FRAMES)


def _later(packets, frames):
    for packet in packets:
        step = frames * packet.duration
        packet.pts, packet.dts = packet.pts - step, packet.dts - step
    return packets


def test_frames_that_an_edit_list_hides_are_not_shown(odd, film):
    cut = odd.remux(film, "mp4", lambda packets: _later(packets, 6))
    clip = decode_clip(cut, every_frame)
    assert (clip.total, _numbers(clip)) == (10, list(range(6, 16)))
    middle = decode_clip(cut, FrameChoice(5, None))
    assert _numbers(middle) == [7, 9, 11, 13, 15]


@pytest.mark.parametrize("container", ["avi", "asf", "mp4 from avi"])
def test_frames_of_containers_without_presentation_times_keep_their_order(
    odd, make_ramp, container
):
    data = odd.encode(make_ramp(16), container.rpartition(" ")[2], **B_FRAMES)
    if container == "mp4 from avi":
        data = odd.remux(data, "mp4", list)
    clip = decode_clip(data, every_frame)
    assert (clip.total, _numbers(clip)) == (16, list(range(16)))


def test_a_recording_begins_at_its_first_key_frame(odd, film):
    clip = decode_clip(odd.remux(film, "matroska", lambda packets: packets[2:]), every_frame)
    assert (clip.total, _numbers(clip)) == (12, list(range(4, 16)))


@pytest.mark.parametrize(
    "flags", ["frag_keyframe", "isml+frag_keyframe", "frag_keyframe+empty_moov"]
)
def test_all_fragments_are_read(odd, film, flags):
    data = odd.remux(film, "mp4", list, movflags=flags)
    clip = decode_clip(data, every_frame)
    assert (clip.total, _numbers(clip)) == (16, list(range(16)))


def test_a_file_that_ends_inside_a_fragment_is_truncated(odd, film):
    data = odd.remux(film, "mp4", list, movflags="frag_keyframe+empty_moov")
    last = data.rindex(b"moof")
    for end in (last - 2, last + 20, data.rindex(b"mdat") + 50):
        with pytest.raises(TruncatedVideoError, match="ends inside a fragment"):
            decode_clip(data[:end], every_frame)


def test_packets_that_are_marked_as_hidden_are_not_counted():
    shown = [SimpleNamespace(size=9, is_discard=False, pts=n, dts=n, duration=1) for n in range(6)]
    shown[2].is_discard = True
    shown[4].size = 0
    frames = ShownFrames(shown, "h264", Fraction(1, 25))
    assert frames.total == 4
    assert frames.pts.tolist() == [0, 1, 3, 5]


def test_few_packets_without_a_time_are_no_frames_and_many_mean_that_there_are_no_times():
    packets = [
        SimpleNamespace(size=9, is_discard=False, pts=n, dts=None, duration=1) for n in range(9)
    ]
    packets[0].pts = packets[1].pts = None
    assert ShownFrames(packets, "h264", Fraction(1, 25)).pts.tolist() == list(range(2, 9))
    packets[2].pts = None
    frames = ShownFrames(packets, "h264", Fraction(1, 25))
    assert (frames.total, frames.pts) == (9, None)


def test_invisible_frames_of_vp8_are_not_counted(odd):
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3)).astype(np.uint8)
    data = odd.encode(frames, "webm", "libvpx")

    def hide(packets):
        content = bytearray(bytes(packets[7]))
        content[0] &= ~0x10  # show_frame
        hidden = av.Packet(bytes(content))
        hidden.pts, hidden.dts = packets[7].pts, packets[7].dts
        hidden.time_base = packets[7].time_base
        return [*packets[:7], hidden, *packets[8:]]

    clip = decode_clip(odd.remux(data, "webm", hide), every_frame)
    assert (clip.total, len(clip.frames)) == (11, 11)
    whole = decode_clip(data, every_frame).frames
    assert np.array_equal(clip.frames, np.delete(whole, 7, axis=0))


def test_cover_art_is_not_the_film(odd, film):
    clip = decode_clip(odd.with_cover(film, odd.png(200, 200)), every_frame)
    assert (clip.total, clip.source_size) == (16, (40, 32))


def test_a_file_with_nothing_but_a_cover_has_no_video(odd, tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(EmptyVideoError, match="only a cover picture"):
        decode_clip(odd.with_cover(path.read_bytes(), odd.png(20, 20)), every_frame)


# What transpose, hflip and vflip of FFmpeg make of a picture, in NumPy.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, -1, 0): lambda image: np.rot90(image, 3),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
    (0, 1, 1, 0): lambda image: np.swapaxes(image, 0, 1),
    (0, -1, -1, 0): lambda image: np.swapaxes(image[::-1, ::-1], 0, 1),
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_turned_and_mirrored_videos_are_shown_upright(odd, matrix):
    stored = np.zeros((2, 32, 48, 3), dtype=np.uint8)
    stored[:, :16, :16] = 255  # top left
    stored[:, 16:, :16] = 100  # bottom left
    data = odd.with_matrix(odd.encode(stored), *matrix)
    expected = ORIENTATIONS[matrix](stored[0]).astype(float)
    clip = decode_clip(data, every_frame)
    assert clip.frames.shape[1:] == expected.shape
    assert clip.source_size == (expected.shape[1], expected.shape[0])
    assert np.abs(clip.frames - expected).mean() < 6


def test_pixels_that_are_not_square_are_shown_square(odd, make_ramp):
    data = odd.encode(make_ramp(3), aspect=Fraction(2, 1))
    clip = decode_clip(data, every_frame)
    assert clip.source_size == (80, 32)
    assert clip.frames.shape == (3, 32, 80, 3)
    assert decode_clip(data, every_frame, short_side=16).frames.shape == (3, 16, 40, 3)
    turned = decode_clip(odd.with_matrix(data, 0, 1, -1, 0), every_frame, short_side=16)
    assert (turned.source_size, turned.frames.shape) == ((32, 80), (3, 40, 16, 3))


@pytest.mark.parametrize("size", [(50, 16), (100, 32)])
def test_frames_that_are_flagged_as_interlaced_are_converted_whole(odd, size):
    """As the ffmpeg command does; converted by fields, the colours of other lines are taken."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 100, 3)).astype(np.uint8)
    data = odd.encode(frames, crf="0", colorspace="bt709", flags="+ildct+ilme")
    with av.open(io.BytesIO(data)) as source:
        frame = next(source.decode(video=0))
    assert frame.interlaced_frame
    plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
    plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
    expected = plain.reformat(*size, "rgb24", interpolation="AREA").to_ndarray()
    shown = decode_clip(data, every_frame, short_side=size[1]).frames[0]
    assert np.array_equal(shown, expected)


def test_a_stream_that_appears_late_ends_nothing():
    packets = [SimpleNamespace(size=size) for size in (5, 7, 0)]

    def demux():  # as PyAV: the packets, then the flush that meets the new stream
        yield from packets
        raise IndexError("list index out of range")

    assert list(all_packets(SimpleNamespace(demux=demux))) == packets[:2]


@pytest.mark.parametrize("container", ["webm", "flv", "avi", "asf"])
def test_a_header_that_promises_more_time_than_is_there(odd, make_ramp, container):
    codec = {"webm": "libvpx", "flv": "flv", "avi": "mjpeg", "asf": "wmv2"}[container]
    frames = np.random.default_rng(1).integers(0, 256, (60, 32, 48, 3)).astype(np.uint8)
    data = odd.encode(
        frames, container, codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p"
    )
    assert decode_clip(data, last_frame).total == 60
    with pytest.raises(TruncatedVideoError):
        decode_clip(data[: int(0.6 * len(data))], last_frame)


def test_a_variable_frame_rate_is_cut_in_equal_parts_of_time(odd, make_ramp):
    # Eight frames in the first second, then 1, 2, 3 and 3 7/8 s.
    times = [*range(8), 8, 16, 24, 31]
    data = odd.encode(make_ramp(12), "matroska", times=times, rate=8)
    clip = decode_clip(data, FrameChoice(4, None))
    assert _numbers(clip) == [4, 8, 9, 10]
    by_index = decode_clip(data, FrameChoice(4, None, by_time=False))
    assert _numbers(by_index) == [1, 4, 7, 10]
    drawn = decode_clip(data, FrameChoice(4, np.array([0.0, 0.99, 0.0, 0.99])))
    assert _numbers(drawn) == [0, 8, 9, 11]


def test_a_constant_rate_in_rounded_timestamps_stays_constant(odd, make_ramp):
    data = odd.encode(make_ramp(12), "matroska", rate=30)  # ticks of 1 ms: steps of 33 and 34
    clip = decode_clip(data, every_frame)
    assert clip.timeline.edges is None
    one_lost = odd.encode(make_ramp(12), times=[*range(6), *range(7, 13)])
    assert decode_clip(one_lost, every_frame).timeline.edges is None
