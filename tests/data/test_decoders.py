"""The libraries that decode: one interface, the same frames, clear errors where one is missing."""

from __future__ import annotations

import io
import sys

import av
import numpy as np
import pytest

from svilm_fast.data import decoders
from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.decoders import reader_of, require_times
from svilm_fast.data.display import arrange
from svilm_fast.data.errors import DataError, OversizedVideoError, VideoError
from svilm_fast.data.sampling import FrameChoice


class Other:
    """A stand-in for another library: decodes every packet, edit lists or not."""

    name = "other"

    def __call__(self, request):
        with av.open(io.BytesIO(request.data)) as source:
            frames = list(source.decode(source.streams[request.stream_index]))
        require_times(self.name, request, len(frames))
        chosen = [frames[place] for place in request.places]
        require_times(self.name, request, len(frames), np.array([f.time for f in chosen]))
        return [arrange(f.to_ndarray(format="rgb24"), request.turn) for f in chosen]


LIBRARIES = ("other", "torchcodec", "spdl")


@pytest.fixture(params=LIBRARIES)
def reader(request):
    if request.param == "other":
        return Other()
    try:
        return reader_of(request.param)
    except DataError as error:
        pytest.skip(str(error)[:80])


def _same(ours, theirs, tolerance=4):
    assert np.array_equal(ours.index, theirs.index)
    assert ours.frames.shape == theirs.frames.shape
    assert (ours.total, ours.source_size) == (theirs.total, theirs.source_size)
    assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < tolerance


def test_the_same_frames_are_given(reader, odd, make_ramp):
    varying = odd.encode(make_ramp(12), "matroska", times=[*range(8), 12, 20, 28, 31], rate=8)
    reordered = odd.encode(make_ramp(16), g="8", bf="2")
    for data in (reordered, varying):
        for choose in (every_frame, FrameChoice(5, None), lambda _: np.array([2, 2, 9])):
            _same(decode_clip(data, choose), decode_clip(data, choose, reader=reader))
    small = decode_clip(reordered, every_frame, short_side=16, reader=reader)
    assert small.frames.shape == (16, 16, 20, 3)


def test_turned_videos_are_upright(reader, odd):
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, :16, :16] = 255
    data = odd.with_matrix(odd.encode(frames), 0, 1, -1, 0)
    _same(decode_clip(data, every_frame), decode_clip(data, every_frame, reader=reader))


def test_what_a_library_cannot_give_is_refused(reader, odd, make_ramp):
    def later(packets):
        for packet in packets:
            packet.pts, packet.dts = (x - 6 * packet.duration for x in (packet.pts, packet.dts))
        return packets

    mirrored = odd.with_matrix(odd.encode(make_ramp(4)), -1, 0, 0, 1)
    if reader.name == "torchcodec":
        with pytest.raises(VideoError, match="mirrored"):
            decode_clip(mirrored, every_frame, reader=reader)
    untimed = odd.encode(make_ramp(8), "mpeg2video", "mpeg2video")
    with pytest.raises(VideoError, match=r"use data\.decoder=pyav"):
        decode_clip(untimed, every_frame, reader=reader)
    with pytest.raises(OversizedVideoError, match=r"limits\.frame_pixels"):
        decode_clip(mirrored, every_frame, reader=reader, limits=LimitsConfig(frame_pixels=100))
    cut = odd.remux(odd.encode(make_ramp(16), g="4", bf="2"), "mp4", later)
    try:  # the right frames or none
        clip = decode_clip(cut, every_frame, reader=reader)
    except VideoError as error:
        refusal = str(error)
    else:
        _same(decode_clip(cut, every_frame), clip)
        return
    assert "use data.decoder=pyav" in refusal


def test_other_frames_than_those_wanted_are_noticed(videos):
    class Late(Other):
        def __call__(self, request):
            times = request.times[list(request.places)] + 0.1
            require_times(self.name, request, len(request.times), times)

    with pytest.raises(VideoError, match="other frames than those wanted"):
        decode_clip(videos[0], every_frame, reader=Late())

    class Short(Other):
        def __call__(self, request):
            require_times(self.name, request, len(request.times) + 2)

    with pytest.raises(VideoError, match="finds 14 frames where 12 are shown"):
        decode_clip(videos[0], every_frame, reader=Short())


@pytest.mark.parametrize("name", ["torchcodec", "spdl"])
def test_a_missing_library_is_said_at_once(name, monkeypatch, make_dataset, videos):
    reader_of.cache_clear()
    for module in [each for each in sys.modules if name in each]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"data\.decoder={name} cannot be loaded: pip install 'svilm-fast\[{name}\]'"
    with pytest.raises(DataError, match=message):
        decode_limited(videos[0], every_frame, decoder=name)
    with pytest.raises(DataError, match=message):
        make_dataset(3, decoder=name)
    reader_of.cache_clear()


def test_every_setting_has_a_decoder():
    settings = DataConfig.model_fields["decoder"].annotation.__args__
    assert set(settings) == {"auto", "pyav", *decoders._READERS}
    assert reader_of("auto") is reader_of("pyav") is None
    with pytest.raises(DataError, match="not one of auto, pyav, spdl, torchcodec"):
        reader_of("decord")


def test_a_process_of_its_own_decodes_with_the_library(videos):
    for name in ("torchcodec", "spdl"):
        try:
            reader = reader_of(name)
        except DataError:
            continue
        here = decode_clip(videos[0], FrameChoice(4, None), reader=reader)
        there = decode_limited(videos[0], FrameChoice(4, None), decoder=name)
        assert np.array_equal(here.frames, there.frames)
        return
    pytest.skip("neither torchcodec nor spdl is installed")
