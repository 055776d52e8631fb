"""The files of compressed clips: what is written is read; damage is an error that says what."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import OversizedVideoError, PaletteError
from svilm_fast.data.palettes.codes import pack, unpack
from svilm_fast.data.palettes.format import (
    PixelBlock,
    read_clip,
    read_shared,
    write_clip,
    write_shared,
)
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.timeline import Timeline


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_window_of_packed_codes_is_read(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 21), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 3, bits)
    for first, width in ((0, 21), (0, 1), (7, 2), (8, 8), (5, 16), (20, 1)):
        assert np.array_equal(unpack(packed, first, width), codes[:, first : first + width])


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 4, 4), (2, 2, 2)])
def test_a_clip_is_read_as_it_was_written(make_clip, block):
    clip, _ = make_clip(PixelBlock(*block), bits=5)
    read = read_clip(write_clip(clip))
    assert np.array_equal(read.palette, clip.palette)
    assert np.array_equal(read.packed, clip.packed)
    assert np.array_equal(read.index, clip.index)
    assert np.array_equal(read.timeline.edges, clip.timeline.edges)
    same = replace(read, palette=0, packed=0, index=0, timeline=0)
    assert same == replace(clip, palette=0, packed=0, index=0, timeline=0)


def test_frames_are_the_nearest_entries_of_every_vector(make_clip):
    for block in (PixelBlock(1, 1, 1), PixelBlock(2, 2, 2), PixelBlock(1, 4, 4)):
        clip, frames = make_clip(block, bits=4)
        decoded = clip.decoded(np.arange(5))
        assert decoded.shape == frames.shape
        t, y, x = 4, 11, 17  # in blocks that reach beyond the clip
        corner = tuple(int(p // s * s) for p, s in zip((t, y, x), block))
        spans = [
            np.minimum(np.arange(c, c + s), size - 1)
            for c, s, size in zip(corner, block, frames.shape)
        ]
        vector = frames[np.ix_(*spans)].reshape(-1).astype(int)
        distances = ((clip.palette.astype(int) - vector) ** 2).sum(axis=1)
        entry = clip.palette[distances.argmin()].reshape(*block, 3)
        assert np.array_equal(
            decoded[t, y, x], entry[t % block.time, y % block.height, x % block.width]
        )
        assert np.array_equal(clip.decoded(np.array([1, 1, 4])), decoded[[1, 1, 4]])


def test_every_flipped_byte_is_noticed(make_clip):
    data = write_clip(make_clip(bits=3, shape=(2, 4, 5))[0])
    for place in range(8, len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(PaletteError):
            read_clip(bytes(broken))


def test_every_cut_is_noticed(make_clip):
    data = write_clip(make_clip(bits=3, shape=(2, 4, 5))[0])
    for length in range(len(data)):
        with pytest.raises(PaletteError):
            read_clip(data[:length])
    with pytest.raises(PaletteError, match="bytes and"):
        read_clip(data + b"x")


def test_codes_beyond_the_palette_are_refused(make_clip):
    clip, _ = make_clip(bits=4)
    wrong = replace(clip, palette=clip.palette[:3])
    with pytest.raises(PaletteError, match="beyond the palette of 3"):
        read_clip(write_clip(wrong)).decoded(np.arange(5))


@pytest.mark.parametrize("fps", ["NaN", "Infinity", "-1", "1" + "0" * 400])
def test_a_rate_that_is_no_number_is_refused(make_clip, fps):
    data = write_clip(make_clip()[0])
    with pytest.raises(PaletteError):
        read_clip(_with_header(data, b'"fps": 10.0', f'"fps": {fps}'.encode()))


def _with_header(data: bytes, old: bytes, new: bytes) -> bytes:
    """A clip with a changed header, whose length and checksum fit."""
    length = int.from_bytes(data[12:16], "little")
    header = data[16 : 16 + length].replace(old, new)
    assert header != data[16 : 16 + length]
    rest = len(header).to_bytes(4, "little") + header + data[16 + length :]
    return data[:8] + zlib.crc32(rest).to_bytes(4, "little") + rest


def test_limits_hold_before_anything_is_decoded(make_clip):
    data = write_clip(make_clip()[0])
    for limits in (LimitsConfig(frames=4), LimitsConfig(frame_pixels=13 * 18 - 1)):
        with pytest.raises(OversizedVideoError, match="5 frames of 18 x 13"):
            read_clip(data, limits)


def test_a_small_file_of_large_blocks_takes_no_more_memory_than_allowed(make_clip):
    data = write_clip(make_clip(PixelBlock(2, 2, 2), bits=2)[0])
    needed = 2 * 7 * 9 * (2 * 2 * 2 * 3)  # 7 x 9 blocks cover a frame of 13 x 18 pixels
    choose = FrameChoice(1, None)
    assert len(decode_limited(data, choose, limits=LimitsConfig(memory_bytes=needed)).frames) == 1
    with pytest.raises(OversizedVideoError, match="memory_bytes"):
        decode_limited(data, choose, limits=LimitsConfig(memory_bytes=needed - 1))


def test_shared_palettes(make_clip):
    clip, _ = make_clip(bits=4)
    other = np.zeros((7, 3), np.uint8)
    shared = read_shared(write_shared([other, clip.palette]))
    data = write_clip(clip, shared=1)
    assert len(data) < len(write_clip(clip))
    assert np.array_equal(
        read_clip(data + shared[1]).decoded(np.arange(5)), clip.decoded(np.arange(5))
    )
    with pytest.raises(PaletteError, match="shared by a shard"):
        read_clip(data)
    changed = bytes(16 * 3)
    with pytest.raises(PaletteError, match="another one"):
        read_clip(data + changed)
    with pytest.raises(PaletteError, match="checksum"):
        read_shared(write_shared([other])[:-1] + b"x")


def test_frames_of_a_constant_rate_need_no_times(make_clip):
    clip, _ = make_clip()
    steady = replace(clip, timeline=Timeline(5, None, 0.25))
    assert read_clip(write_clip(steady)).timeline == Timeline(5, None, 0.25)
