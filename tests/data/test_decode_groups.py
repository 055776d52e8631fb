"""Decoding by groups of pictures gives what decoding everything gives, bit for bit, for less."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from svilm_fast.data import containers
from svilm_fast.data.bitstreams import NotSeparable
from svilm_fast.data.bitstreams.frames import AV1
from svilm_fast.data.bitstreams.nal_units import H264, HEVC
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame, last_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.demux import Budget, open_video
from svilm_fast.data.errors import DataError, VideoError
from svilm_fast.data.groups import Groups
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment

FRAMES, GROUP = 60, 10

_X264 = f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal"
_X265 = f"log-level=0:keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3:b-adapt=0"
_PLAIN = {"g": str(GROUP)}
# name: muxer, encoder, options of the encoder
FILES = {
    "h264": ("mp4", "libx264", {"preset": "fast", "x264-params": _X264}),
    "h264 open": ("matroska", "libx264", {"preset": "fast", "x264-params": _X264 + ":open-gop=1"}),
    "h264 open stream": (
        "mpegts",
        "libx264",
        {"preset": "fast", "x264-params": _X264 + ":open-gop=1"},
    ),
    "h264 refresh": ("mpegts", "libx264", {"x264-params": f"keyint={GROUP}:intra-refresh=1"}),
    "h264 slices": ("mpegts", "libx264", {"preset": "fast", "x264-params": _X264 + ":slices=2"}),
    "h264 flv": ("flv", "libx264", {"x264-params": _X264}),
    "h264 intra": ("mp4", "libx264", {"g": "1"}),
    "hevc open": ("mp4", "libx265", {"preset": "ultrafast", "x265-params": _X265}),
    "hevc closed": (
        "matroska",
        "libx265",
        {"preset": "ultrafast", "x265-params": _X265 + ":open-gop=0"},
    ),
    "hevc layers": (
        "mp4",
        "libx265",
        {"preset": "ultrafast", "x265-params": _X265 + ":temporal-layers=1"},
    ),
    "mpeg2 open": ("mpegts", "mpeg2video", {**_PLAIN, "bf": "2"}),
    "mpeg2 matroska": ("matroska", "mpeg2video", {**_PLAIN, "bf": "2"}),
    "mpeg1": ("mpegts", "mpeg1video", {**_PLAIN, "bf": "2"}),
    "vp8": (
        "webm",
        "libvpx",
        {**_PLAIN, "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "5"},
    ),
    "vp9": (
        "webm",
        "libvpx-vp9",
        {**_PLAIN, "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "5"},
    ),
    "av1": ("mp4", "libsvtav1", {**_PLAIN, "preset": "12", "svtav1-params": "lp=1"}),
}
# Their groups cannot be told apart by headers alone, or there is one.
ONE_GROUP = ("h264 open", "h264 open stream", "h264 refresh")


def _picture(count, height=48, width=64):
    """A gradient that moves under noise: every frame depends on those before it."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([x * 3 + 5 * f, y * 4 + 3 * f, (x + y) * 2 - 4 * f], axis=-1) for f in range(count)
    ]
    noise = random.integers(0, 24, (count, height, width, 3))
    return ((np.stack(frames) + noise) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def file(odd):
    """The file of a name in FILES; each is encoded once."""
    made = {}

    def make(name):
        if name not in made:
            muxer, codec, options = FILES[name]
            made[name] = odd.encode(_picture(FRAMES, 64, 64), muxer, codec, **options)
        return made[name]

    return make


class Fixed:
    """A choice of given places, as far as the video has them."""

    def __init__(self, *places):
        self.places = places

    def __call__(self, timeline):
        return np.minimum(np.array(self.places), timeline.total - 1)


def _choices(seed, count):
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield Fixed(*sorted(random.integers(0, FRAMES, random.integers(1, 7)).tolist()))
        first = int(random.integers(0, FRAMES - 8))
        yield Fixed(*range(first, first + 8))


def _require_equal(data, choose, fallback=None):
    """Both ways give the same clip, or the same error."""
    results = []
    for groups in (True, False):
        try:
            results.append(decode_clip(data, choose, groups=groups))
        except DataError as error:
            results.append((type(error), str(error)))
    ours, everything = results
    if isinstance(everything, tuple):
        assert ours == everything
        return
    assert np.array_equal(ours.frames, everything.frames)
    assert np.array_equal(ours.index, everything.index)
    assert ours.total == everything.total
    assert (ours.fps, ours.source_size) == (everything.fps, everything.source_size)
    assert everything.fallback is None
    assert fallback == "any" or ours.fallback == fallback


@pytest.mark.parametrize("name", FILES)
def test_any_frames_are_those_of_decoding_everything(file, name):
    data = file(name)
    for choose in (Fixed(0), Fixed(FRAMES - 1), FrameChoice(6, None), *_choices(0, 4)):
        _require_equal(data, choose)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_single_frame_is_that_of_decoding_everything(file, name):
    everything = decode_clip(file(name), every_frame, groups=False).frames
    for place in range(FRAMES):
        clip = decode_clip(file(name), Fixed(place))
        assert np.array_equal(clip.frames[0], everything[place])
        assert clip.fallback is None


@pytest.mark.parametrize("name", [name for name in FILES if name not in ONE_GROUP])
def test_only_the_groups_of_wanted_frames_are_decoded(file, name, monkeypatch):
    decoded = []
    check = Budget.check_time
    monkeypatch.setattr(
        Budget, "check_size", lambda self, *size: decoded.append(size) or check(self)
    )
    for groups, low, high in ((False, FRAMES - 4, FRAMES + 3), (True, 1, 3 * GROUP)):
        decoded.clear()
        decode_clip(file(name), Fixed(FRAMES - 2), groups=groups)
        assert low < len(decoded) <= high


@pytest.mark.parametrize("name", ["h264", "h264 open", "hevc closed", "mpeg2 open"])
def test_frames_that_no_other_refers_to_are_left_out(file, name, monkeypatch):
    decoded = []
    monkeypatch.setattr(Budget, "check_size", lambda self, *size: decoded.append(size))
    decode_clip(file(name), Fixed(*range(0, FRAMES, GROUP)))
    assert len(decoded) < 0.85 * FRAMES


def _change(odd, data, name, change):
    return odd.remux(data, FILES[name][0], change)


@pytest.mark.parametrize("name", ["h264", "h264 open", "hevc open", "mpeg2 open", "vp8", "vp9"])
@pytest.mark.parametrize("cut", [2, GROUP // 2, GROUP + 3])
def test_recordings_that_begin_anywhere(odd, file, name, cut):
    data = _change(odd, file(name), name, lambda packets: packets[cut:])
    for choose in (Fixed(0), FrameChoice(4, None), *_choices(1, 2)):
        _require_equal(data, choose)


@pytest.mark.parametrize("name", ["h264", "hevc open"])
def test_edit_lists_that_begin_amid_a_group(odd, file, name):
    def later(packets):
        for packet in packets:
            step = 17 * packet.duration
            packet.pts, packet.dts = packet.pts - step, packet.dts - step
        return packets

    data = odd.remux(file(name), "mp4", later)
    assert decode_clip(data, last_frame).total < FRAMES
    for choose in (Fixed(0), Fixed(1, 2), FrameChoice(5, None), *_choices(2, 2)):
        _require_equal(data, choose)


def test_variable_frame_rates(odd):
    random = np.random.default_rng(3)
    times = np.cumsum(random.integers(1, 9, FRAMES)).tolist()
    data = odd.encode(_picture(FRAMES), "matroska", times=times, **{"x264-params": _X264})
    assert decode_clip(data, every_frame).timeline.edges is not None
    for choose in (FrameChoice(6, None), *_choices(3, 3)):
        _require_equal(data, choose)


@pytest.mark.parametrize("name", ["h264", "hevc open", "mpeg2 open", "vp9"])
def test_flags_of_key_frames_are_not_trusted(odd, file, name):
    def confuse(packets):
        for number, packet in enumerate(packets):
            packet.is_keyframe = number % 7 == 3
        return packets

    data = _change(odd, file(name), name, confuse)
    for choose in _choices(4, 3):
        _require_equal(data, choose)


@pytest.mark.parametrize("name", ["h264", "h264 open", "h264 refresh", "hevc open", "mpeg2 open"])
@pytest.mark.parametrize("lost", [(4,), (21, 22), (13, 35)])
def test_stand_ins_for_lost_frames_are_the_same(odd, file, name, lost):
    data = _change(
        odd,
        file(name),
        name,
        lambda packets: [packet for number, packet in enumerate(packets) if number not in lost],
    )
    for choose in (*_choices(5, 2), *(Fixed(place) for place in range(0, FRAMES, 3))):
        _require_equal(data, choose, fallback="any")


FALLBACKS = {
    "no times": ("mpeg2video", "mpeg2video", {}, "packets without times"),
    "times of no particular frame": ("avi", "libx264", {"bf": "2"}, "packets without times"),
    "another codec": ("avi", "mpeg4", {}, "codec mpeg4"),
    "fields": ("mp4", "libx264", {"flags": "+ildct+ilme"}, "interlaced H.264"),
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_what_headers_do_not_prove_is_decoded_from_the_start_and_counted(odd, kind):
    muxer, codec, options, reason = FALLBACKS[kind]
    data = odd.encode(_picture(24, 64, 64), muxer, codec, **options)
    for choose in (Fixed(0), Fixed(5, 17, 23)):
        _require_equal(data, choose, fallback=reason)
    assert decode_limited(data, FrameChoice(3, None)).fallback == reason


def test_parameter_sets_that_change_between_groups_are_noticed(odd):
    parts = [
        odd.encode(_picture(20), "mpegts", times=times, **{"x264-params": _X264, **options})
        for times, options in (
            (range(20), {}),
            (range(30, 50), {"x264-params": _X264 + ":chroma-qp-offset=4"}),
        )
    ]
    data = odd.join(parts, "mpegts")
    _require_equal(data, Fixed(2, 33), fallback="the parameter sets change")


@pytest.fixture
def damaged(odd, file):
    """The third group's second packet is noise."""

    def damage(packets):
        noise = np.random.default_rng(0).bytes(packets[2 * GROUP + 1].size - 5)
        bad = packets[2 * GROUP + 1]
        content = bytes(bad)[:5] + noise
        return [*packets[: 2 * GROUP + 1], odd.packet(bad, content), *packets[2 * GROUP + 2 :]]

    return odd.remux(file("h264"), "matroska", damage)


def test_damage_counts_where_it_is_decoded(damaged):
    assert decode_clip(damaged, Fixed(3, 50)).fallback is None
    with pytest.raises(VideoError):
        decode_clip(damaged, Fixed(3, 50), groups=False)
    for choose in (Fixed(25, 28), FrameChoice(8, None)):
        with pytest.raises(VideoError) as ours:
            decode_clip(damaged, choose)
        with pytest.raises(VideoError) as everything:
            decode_clip(damaged, choose, groups=False)
        assert str(ours.value) == str(everything.value)


def test_the_last_frame_stands_for_everything_in_segments_and_processes_too(damaged):
    for choose in (last_frame, InSegment(last_frame, None), pickle.loads(pickle.dumps(last_frame))):
        with pytest.raises(VideoError):
            decode_clip(damaged, choose)
    with pytest.raises(VideoError):
        decode_limited(damaged, InSegment(last_frame, (0.0, 2.0)))
    assert decode_clip(damaged, InSegment(Fixed(10**6), (0.0, 0.5))).fallback is None


def test_sample_descriptions_are_counted(file):
    data = bytearray(file("h264"))
    assert containers.sample_descriptions(bytes(data)) == 1
    assert containers.sample_descriptions(file("vp8")) == 0
    place = data.rindex(b"stsd")
    data[place + 8 : place + 12] = (2).to_bytes(4, "big")
    assert containers.sample_descriptions(bytes(data)) == 2
    assert containers.sample_descriptions(bytes(data[: place + 3])) == 0


def test_a_decoder_that_holds_back_too_few_frames_decodes_everything(file):
    data = file("h264")
    with open_video(data, containers.MOV, Budget(LimitsConfig(), None)) as video:
        settings = {"name": "h264", "extradata": video.context.extradata}
        known = Groups(video.packets, SimpleNamespace(**settings, reorder_depth=2))
        assert known.entries == list(range(0, FRAMES, GROUP))
        with pytest.raises(NotSeparable, match="more reordering"):
            Groups(video.packets, SimpleNamespace(**settings, reorder_depth=1))


def test_only_the_highest_temporal_layer_of_hevc_is_referred_to_by_none():
    key, low, high = (
        b"\0\0\1" + bytes((kind << 1, layer + 1, 0x80, 0x80))
        for kind, layer in ((19, 0), (0, 0), (2, 1))  # IDR_W_RADL, TRAIL_N, TSA_N
    )
    flat, layered = HEVC(b""), HEVC(b"")
    assert [flat.entry(data) for data in (key, low)] == [True, False]
    assert flat.disposable([key, low]) == [False, True]
    assert [layered.entry(data) for data in (key, low, high)] == [True, False, False]
    assert layered.disposable([key, low, high]) == [False, False, True]


@pytest.mark.parametrize("name", ONE_GROUP)
def test_recovery_points_of_h264_are_no_entry_points(file, name):
    data = file(name)
    container = containers.sniff(data)
    with open_video(data, container, Budget(LimitsConfig(), None)) as video:
        assert sum(packet.is_keyframe for packet in video.packets) > 1
        assert Groups(video.packets, video.context).entries == [0]


_UNREGISTERED = b"\5\x15" + bytes(range(4, 25))
_LARGE = b"\5\xff\x0a" + b"\1" * 265  # size 255 + 10
_ESCAPED = b"\5\6\0\0\3\1\0\0\3\0"  # six bytes and two of emulation prevention
_GRAIN = b"\x13\1\x80"


@pytest.mark.parametrize(("syntax", "header"), [(H264, b"\6"), (HEVC, b"\x4e\1")])
@pytest.mark.parametrize("before", [b"", _UNREGISTERED, _LARGE, _ESCAPED, _LARGE + _ESCAPED])
def test_film_grain_is_found_among_the_messages_of_a_unit(syntax, header, before):
    key = {H264: b"\0\0\1\x65\x88\x84", HEVC: b"\0\0\1\x26\1\xaf"}[syntax]
    start = b"\0\0\1" + header + before
    with pytest.raises(NotSeparable, match="film grain"):
        syntax(b"").before_picture(start + _GRAIN + b"\x80" + key)
    # 19 is no type here: it is part of a payload, or 255 + 19.
    for other in (b"\5\1\x13", b"\xff\x13\1\x80"):
        assert syntax(b"").before_picture(start + other + b"\x80" + key)[0] > 0


def test_units_of_endless_messages_are_not_read_to_their_end():
    with pytest.raises(NotSeparable, match="too many parts"):
        HEVC(b"").before_picture(b"\0\0\1\x4e\1" + b"\5\0" * 300_000)


@pytest.mark.parametrize(
    ("syntax", "unit"),
    [
        (H264(b""), b"\0\0\1\x46"),
        (HEVC(b""), b"\0\0\1\x46"),
        (H264(b"\1" + bytes(7)), b"\0"),  # lengths of 0
        (AV1(), b"\x12\0"),
    ],
)
def test_packets_of_endless_headers_are_not_read_to_their_end(syntax, unit):
    assert not syntax.entry(unit * 500)
    with pytest.raises(NotSeparable, match="too many parts"):
        syntax.entry(unit * 300_000)
