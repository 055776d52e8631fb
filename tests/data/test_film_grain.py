"""Film grain in SEI messages: videos with it are decoded from their first frame."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.data.bitstreams import NotSeparable
from svilm_fast.data.bitstreams.nal_units import H264, HEVC
from svilm_fast.data.decode import decode_clip, every_frame

GRAIN = (19, b"\x01")  # for the units below; only the type is read
UNREGISTERED = (5, bytes(16) + b"text")
LONG = (5, bytes(range(256)) * 3)  # three bytes of size
HIGH = (300, b"\x01\x02")  # two bytes of type
HEADERS = {H264: b"\x06", HEVC: b"\x4e\x01"}
SLICES = {H264: b"\x65\x88\x84", HEVC: b"\x26\x01\xaf\x80"}


def _number(value):
    return b"\xff" * (value // 255) + bytes([value % 255])


def _sei(syntax, *messages):
    """An SEI NAL unit, with emulation prevention bytes."""
    content = b"".join(_number(kind) + _number(len(body)) + body for kind, body in messages)
    escaped, zeros = bytearray(HEADERS[syntax]), 0
    for byte in content + b"\x80":
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = 0 if byte else zeros + 1
    return bytes(escaped)


def _packet(*units, lengths=False):
    return b"".join((len(u).to_bytes(4, "big") if lengths else b"\0\0\1") + u for u in units)


def _configuration(*units):
    """An HEVC decoder configuration record with an array of prefix SEI messages."""
    stored = b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)
    arrays = b"\x01\x27" + len(units).to_bytes(2, "big") + stored if units else b"\0"
    return b"\x01" + bytes(20) + b"\x03" + arrays


@pytest.mark.parametrize("syntax", [H264, HEVC])
@pytest.mark.parametrize("before", [(), (UNREGISTERED,), (LONG, HIGH), (HIGH, UNREGISTERED, LONG)])
def test_every_message_of_an_sei_unit_is_looked_at(syntax, before):
    data = _packet(SLICES[syntax], _sei(syntax, *before, GRAIN))
    for packet in (data, _packet(_sei(syntax, *before, GRAIN), SLICES[syntax])):
        with pytest.raises(NotSeparable, match="film grain"):
            syntax(b"").before_picture(packet)
    harmless = _packet(_sei(syntax, *before, (4, bytes([19]) * 40)), SLICES[syntax])
    assert syntax(b"").before_picture(harmless)[0] > 0


def test_packets_that_begin_with_a_slice_are_read_if_they_hold_more():
    reader = H264(b"\x01" + bytes(3) + b"\xff\xe0" + bytes(8))
    alone = _packet(b"\x41\x9a", lengths=True)
    assert reader.ordinary(memoryview(alone))
    more = alone + _packet(_sei(H264, UNREGISTERED, GRAIN), lengths=True)
    assert not reader.ordinary(memoryview(more))
    with pytest.raises(NotSeparable, match="film grain"):
        reader.before_picture(more)


def test_messages_in_the_configuration_of_hevc_count():
    HEVC(_configuration())
    HEVC(_configuration(_sei(HEVC, UNREGISTERED)))
    for extradata in (
        _configuration(_sei(HEVC, UNREGISTERED), _sei(HEVC, LONG, GRAIN)),
        _packet(_sei(HEVC, UNREGISTERED, GRAIN)),
    ):
        with pytest.raises(NotSeparable, match="film grain"):
            HEVC(extradata)
    with pytest.raises(NotSeparable, match="too many parts"):
        HEVC(_configuration(*[b""] * 60_000))


@pytest.mark.parametrize("syntax", [H264, HEVC])
def test_cut_messages_are_not_read_beyond_their_end(syntax):
    for content in (b"", b"\xff" * 1000, b"\x05", b"\x05\xff", b"\x05\x7f\x13\x01"):
        syntax(b"").before_picture(_packet(HEADERS[syntax] + content, SLICES[syntax]))
    with pytest.raises(NotSeparable, match="too many parts"):
        syntax(b"").before_picture(_packet(HEADERS[syntax] + b"\x01\x00" * 1000))


def _bits(*fields):
    """Fields (bits, value), closed by a one and filled with zeros."""
    text = "".join(f"{value:0{bits}b}" for bits, value in fields) + "1"
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _grain():
    """Grain of luma for all intensities, which persists (H.265, D.2.10)."""
    signed = [(15, 240), (9, 16), (9, 16)]  # se(v): 120, 8, 8
    flags = [(1, 0), (2, 0), (1, 0), (2, 0), (4, 2), (1, 1), (1, 0), (1, 0)]
    return _bits(*flags, (8, 0), (3, 2), (8, 0), (8, 255), *signed, (1, 1))


@pytest.fixture(scope="module")
def hevc(odd):
    """A file of three groups whose first frame has the given messages."""
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    options = "keyint=8:min-keyint=8:scenecut=0:open-gop=0:log-level=none"
    images = np.stack([np.roll(noise, n, 0) for n in range(24)])
    plain = odd.encode(images, "mpegts", "libx265", preset="ultrafast", **{"x265-params": options})

    def make(*messages):
        def insert(packets):
            content = bytes(packets[0])
            units = [b"\0\0\1" + part for part in content.split(b"\0\0\1")[1:]]
            first = next(n for n, unit in enumerate(units) if unit[3] >> 1 & 63 < 32)
            units.insert(first, _packet(_sei(HEVC, *messages)))
            return [odd.packet(packets[0], b"".join(units)), *packets[1:]]

        return odd.remux(plain, "mpegts", insert) if messages else plain

    return make


def _last(timeline):
    return np.array([timeline.total - 2])


def test_grain_behind_another_message_is_that_of_decoding_everything(hevc):
    data = hevc(UNREGISTERED, (19, _grain()))
    everything = decode_clip(data, every_frame, groups=False).frames
    assert not np.array_equal(everything[-2], decode_clip(hevc(), _last).frames[0])
    clip = decode_clip(data, _last)
    assert clip.fallback == "film grain"
    assert np.array_equal(clip.frames[0], everything[-2])


# Frame packing, display orientation (mirrored), mastering display, light level, other transfer.
@pytest.mark.parametrize(
    "message",
    [
        (45, bytes(8)),
        (47, _bits((1, 0), (1, 1), (1, 1), (16, 0), (1, 1))),
        (137, bytes(24)),
        (144, bytes(4)),
        (147, b"\x12"),
    ],
    ids=lambda message: str(message[0]),
)
def test_other_messages_that_persist_change_no_frame_of_a_later_group(hevc, message):
    data = hevc(UNREGISTERED, message)
    everything = decode_clip(data, every_frame, groups=False).frames
    clip = decode_clip(data, _last)
    assert clip.fallback is None
    assert np.array_equal(clip.frames[0], everything[-2])
