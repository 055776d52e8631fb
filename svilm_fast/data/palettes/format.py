"""The file of a compressed clip, and that of the palettes which the clips of a shard share.

A clip is `KEY.palette` in a shard: 8 bytes that name the format, a CRC-32 of the rest, the length
of a JSON header, the header, and arrays: the numbers of the frames in their video (int32), the
times of their edges in seconds (float64, where the rate varies), the palette, the packed codes.
The codes of every row of vectors begin at a byte. The first member of a shard with shared palettes
is `__palettes__.shared`; a clip's header has the number of its palette and the palette's CRC-32.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.errors import DataError, OversizedVideoError, PaletteError
from svilm_fast.data.palettes.codes import groups_of, unpack
from svilm_fast.data.shards import parse_json
from svilm_fast.data.timeline import Timeline

MEMBER = "palette"  # a clip's extension in a shard
SHARED_KEY, SHARED_MEMBER = "__palettes__", "shared"
SHARED_NAME = f"{SHARED_KEY}.{SHARED_MEMBER}"  # the first member of a shard that has one
MOST_ENTRIES = 256
MOST_BITS = 8

_CLIP, _SHARED = b"SVILMPAL", b"SVILMSHR"
_VERSION = 1
_START = 16  # bytes of magic, checksum and the header's length
_HEADER_BYTES = 1 << 16
_MOST_SIDE = 64  # of a block


class PixelBlock(NamedTuple):
    """What a code stands for: frames, rows and columns of pixels."""

    time: int
    height: int
    width: int

    @property
    def values(self) -> int:
        """V, numbers of a palette's entry."""
        return 3 * self.time * self.height * self.width

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Blocks that cover a clip along time, height and width."""
        sizes = (frames, height, width)
        return tuple(-(-size // side) for size, side in zip(sizes, self))  # type: ignore[return-value]


@dataclass(frozen=True)
class PaletteClip:
    """A compressed clip of `frames` frames of `height` x `width` pixels."""

    method: str
    block: PixelBlock
    palette: np.ndarray  # uint8 [entries, V]: time, row, column, channel
    packed: np.ndarray  # uint8 [t, h, groups, bits] of blocks along time and height
    index: np.ndarray  # int64 [frames], their places in the source video
    timeline: Timeline  # of these frames
    height: int
    width: int
    fps: float  # of the source video
    source_size: tuple[int, int]  # width, height

    @property
    def bits(self) -> int:
        return int(self.packed.shape[-1])

    @property
    def frames(self) -> int:
        return len(self.index)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.block.grid(self.frames, self.height, self.width)

    def codes(
        self, times: np.ndarray | slice, top: int = 0, left: int = 0, size: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """Codes uint8 [n, *size] of a window of blocks; the others are not unpacked.

        times: which rows of blocks along time. size: rows and columns; (0, 0): to the end.
        Raises PaletteError for a code that the palette does not have.
        """
        rows, columns = (wanted or whole for wanted, whole in zip(size, self.grid[1:]))
        codes = unpack(self.packed[times, top : top + rows], left, columns)
        if len(self.palette) < 1 << self.bits and codes.size and codes.max() >= len(self.palette):
            raise PaletteError(f"a code is beyond the palette of {len(self.palette)} entries")
        return codes

    def decoded(self, places: np.ndarray) -> np.ndarray:
        """Frames uint8 [n, height, width, 3] at ascending places of the clip."""
        block = self.block
        rows, row_of = np.unique(places // block.time, return_inverse=True)
        codes = self.codes(rows)
        if block.values == 3:
            whole = np.take(self.palette, codes, axis=0)
            return whole if len(rows) == len(places) else whole[row_of]
        return pixels(codes, self.palette, block, (self.height, self.width))[
            row_of * block.time + places % block.time
        ]


def pixels(
    codes: np.ndarray, palette: np.ndarray, block: PixelBlock, size: tuple[int, int]
) -> np.ndarray:
    """Frames uint8 [t * time, *size, 3] of codes [t, h, w]: one look-up in the palette."""
    t, h, w = codes.shape
    blocks = np.take(palette, codes, axis=0).reshape(t, h, w, *block, 3)
    whole = blocks.transpose(0, 3, 1, 4, 2, 5, 6)
    return whole.reshape(t * block.time, h * block.height, w * block.width, 3)[
        :, : size[0], : size[1]
    ]


def is_compressed(data: bytes) -> bool:
    """Whether these are the bytes of a compressed clip."""
    return data.startswith(_CLIP)


def write_clip(clip: PaletteClip, shared: int | None = None) -> bytes:
    """The bytes of a clip; without its palette where it is number `shared` of its shard."""
    timed = clip.timeline.edges is not None
    header = {
        "version": _VERSION,
        "method": clip.method,
        "block": list(clip.block),
        "bits": clip.bits,
        "entries": len(clip.palette),
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "period": clip.timeline.period,
        "timed": timed,
        "source_size": list(clip.source_size),
        "shared": shared,
        "palette_crc32": zlib.crc32(clip.palette.tobytes()),
    }
    arrays = [clip.index.astype("<i4").tobytes()]
    if timed:
        arrays.append(np.asarray(clip.timeline.edges, "<f8").tobytes())
    if shared is None:
        arrays.append(clip.palette.tobytes())
    return _framed(_CLIP, header, [*arrays, clip.packed.tobytes()])


def read_clip(data: bytes, limits: LimitsConfig | None = None) -> PaletteClip:
    """Parse the bytes of a clip, or of a clip followed by the shared palette it names.

    The codes stay in `data`. Raises PaletteError for anything that is not a whole clip as it was
    written, OversizedVideoError beyond `limits`.
    """
    limits = limits or LimitsConfig()
    header, body = _parsed(data, _CLIP)
    sizes = _Sizes.of(header)
    frames, pixel_count = sizes.frames, sizes.height * sizes.width
    if frames > limits.frames or pixel_count > limits.frame_pixels:
        raise OversizedVideoError(
            f"{frames} frames of {sizes.width} x {sizes.height} pixels, more than limits.frames="
            f"{limits.frames} or limits.frame_pixels={limits.frame_pixels}"
        )
    t, h, w = sizes.block.grid(frames, sizes.height, sizes.width)
    packed_shape = (t, h, groups_of(w), sizes.bits)
    palette_bytes = sizes.entries * sizes.block.values
    parts = [4 * frames, 8 * (frames + 1) if header["timed"] else 0]
    parts += [palette_bytes if header["shared"] is None else 0, math.prod(packed_shape)]
    own, beyond = sum(parts), 0 if header["shared"] is None else palette_bytes
    if len(body) == own and beyond:
        raise PaletteError("its palette is shared by a shard: read it from there")
    if len(body) != own + beyond:
        raise PaletteError(f"its header describes {own + beyond} bytes and {len(body)} follow")
    _check_crc(data, own)
    ends = np.cumsum(parts).tolist()
    index, edges, palette, codes = (body[end - n : end] for n, end in zip(parts, ends))
    palette = palette or body[own:]
    if zlib.crc32(palette) != header["palette_crc32"]:
        raise PaletteError("the palette is another one than the clip was compressed with")
    places = np.frombuffer(index, "<i4").astype(np.int64)
    times = np.frombuffer(edges, "<f8") if header["timed"] else None
    if np.any(np.diff(places) <= 0) or (times is not None and not _ascend(times)):
        raise PaletteError("its frames or their times do not ascend")
    return PaletteClip(
        header["method"],
        sizes.block,
        np.frombuffer(palette, np.uint8).reshape(sizes.entries, -1),
        np.frombuffer(codes, np.uint8).reshape(packed_shape),
        places,
        Timeline(frames, times, float(header["period"])),
        sizes.height,
        sizes.width,
        float(header["fps"]),
        (sizes.source_width, sizes.source_height),
    )


def method_of(data: bytes) -> str:
    """The method that a clip was compressed with. Raises PaletteError."""
    return str(_parsed(data, _CLIP)[0].get("method"))


def shared_number(data: bytes) -> int | None:
    """The number of the palette that a clip shares with others of its shard; None: its own."""
    number = _parsed(data, _CLIP)[0].get("shared")
    return None if number is None else _whole(number, "shared", 0, 1 << 30)


def write_shared(palettes: Sequence[np.ndarray]) -> bytes:
    """The bytes of the palettes uint8 [entries, V] of a shard."""
    shapes = [list(palette.shape) for palette in palettes]
    header = {"version": _VERSION, "shapes": shapes}
    return _framed(_SHARED, header, [palette.tobytes() for palette in palettes])


def read_shared(data: bytes) -> list[bytes]:
    """The bytes of each palette of a shard. Raises PaletteError."""
    header, body = _parsed(data, _SHARED)
    try:
        sizes = [
            _whole(entries, "entries", 1, MOST_ENTRIES) * _whole(values, "values", 3, 1 << 20)
            for entries, values in header["shapes"]
        ]
    except (KeyError, TypeError, ValueError):
        raise PaletteError("the shapes of the shared palettes are not readable") from None
    if sum(sizes) != len(body):
        raise PaletteError(f"{len(body)} bytes of shared palettes, {sum(sizes)} are described")
    _check_crc(data, len(body))
    ends = np.cumsum([0, *sizes]).tolist()
    return [bytes(body[start:end]) for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class _Sizes:
    block: PixelBlock
    bits: int
    entries: int
    frames: int
    height: int
    width: int
    source_width: int
    source_height: int

    @classmethod
    def of(cls, header: dict[str, Any]) -> _Sizes:
        """The checked numbers of a header. Raises PaletteError."""
        try:
            sides = [_whole(side, "block", 1, _MOST_SIDE) for side in header["block"]]
            source = [_whole(side, "source_size", 1, 1 << 16) for side in header["source_size"]]
            bits = _whole(header["bits"], "bits", 1, MOST_BITS)
            sizes = cls(
                PixelBlock(*sides),
                bits,
                _whole(header["entries"], "entries", 1, 1 << bits),
                _whole(header["frames"], "frames", 1, 1 << 30),
                _whole(header["height"], "height", 1, 1 << 16),
                _whole(header["width"], "width", 1, 1 << 16),
                *source,
            )
            well = isinstance(header["method"], str) and isinstance(header["timed"], bool)
            times = [float(header[name]) for name in ("fps", "period")]
            _whole(header["palette_crc32"], "palette_crc32", 0, 2**32 - 1)
            if header["shared"] is not None:
                _whole(header["shared"], "shared", 0, 1 << 30)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise PaletteError(f"its header lacks or misstates a value ({error!r})") from None
        if not well or not all(math.isfinite(each) and each >= 0 for each in times):
            raise PaletteError("its header misstates method, timed, fps or period")
        return sizes


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PaletteError(f"{name}={value!r:.40} must be a whole number from {least} to {most}")
    return value


def _ascend(times: np.ndarray) -> bool:
    return bool(np.isfinite(times).all() and (np.diff(times) > 0).all())


def _framed(magic: bytes, header: dict[str, Any], arrays: list[bytes]) -> bytes:
    text = json.dumps(header).encode()
    rest = len(text).to_bytes(4, "little") + text + b"".join(arrays)
    return magic + zlib.crc32(rest).to_bytes(4, "little") + rest


def _parsed(data: bytes, magic: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and what follows it."""
    kind = "compressed clip" if magic == _CLIP else "file of shared palettes"
    if not data.startswith(magic):
        raise PaletteError(f"no {kind}: it begins with {data[:8]!r}")
    length = int.from_bytes(data[12:_START], "little")
    if len(data) < _START + length or length > _HEADER_BYTES:
        raise PaletteError(f"the {kind} ends inside its header")
    return _header(data[_START : _START + length]), memoryview(data)[_START + length :]


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text, "header")
    except DataError as error:
        raise PaletteError(f"damaged: {error}") from None
    if header.get("version") != _VERSION:
        raise PaletteError(
            f"version {header.get('version')!r:.20} of the format, {_VERSION} is read: compress "
            "again with `svilm data compress`"
        )
    return header


def _check_crc(data: bytes, body: int) -> None:
    """Compare the checksum of the header and the `body` bytes after it."""
    length = int.from_bytes(data[12:_START], "little")
    view = memoryview(data)[12 : _START + length + body]
    if zlib.crc32(view) != int.from_bytes(data[8:12], "little"):
        raise PaletteError("its bytes differ from the checksum in its header")
