"""What codings of the same frames cost: bytes, error, and CPU time of encoding and decoding."""

from __future__ import annotations

import io
import math
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svilm_fast.data.compress.clustering import Clustering
from svilm_fast.data.compress.run import psnr_of
from svilm_fast.data.compress.shard import shared_palettes
from svilm_fast.data.compress.vectors import compressed, sampled, vectors_of
from svilm_fast.data.decode import DecodedClip, decode_clip, every_frame
from svilm_fast.data.palettes.format import (
    MOST_ENTRIES,
    PaletteClip,
    PixelBlock,
    read_clip,
    write_clip,
    write_shared,
)
from svilm_fast.data.palettes.frames import PaletteFrames

TUBELET, PATCH = 2, 16
KEPT = 0.1  # of the tokens
ROUNDS = 5
_CRF = 23
_ZLIB_LEVEL = 6


class Coding(ABC):
    """Encodes clips uint8 [F, h, w, 3] to bytes, and decodes them."""

    name = ""

    def prepare(self, clips: Sequence[DecodedClip]) -> int:
        """Find what all clips share, before the first one is encoded. Returns its bytes."""
        return 0

    @abstractmethod
    def encode(self, clip: DecodedClip, number: int) -> bytes:
        """Return the bytes of the `number`-th clip."""

    @abstractmethod
    def decode(self, data: bytes) -> np.ndarray:
        """Return the frames of one clip, uint8 [F, h, w, 3]."""

    def decode_kept(self, data: bytes, ids: Tensor) -> Tensor:
        """Tokens uint8 [1, n, pixels] numbered `ids` [1, n], in the cheapest way."""
        return _tubelets(torch.from_numpy(self.decode(data))[None], ids)


class JpegCoding(Coding):
    """Every frame is a JPEG of its own; 4 bytes for its length."""

    def __init__(self, quality: int) -> None:
        self.quality, self.name = quality, f"JPEG, quality {quality}"

    def encode(self, clip: DecodedClip, number: int) -> bytes:
        parts = []
        for frame in clip.frames:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=self.quality)
            data = file.getvalue()
            parts.append(len(data).to_bytes(4, "little") + data)
        return b"".join(parts)

    def decode(self, data: bytes) -> np.ndarray:
        frames, place = [], 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 4], "little")
            picture = Image.open(io.BytesIO(data[place + 4 : place + 4 + size]))
            frames.append(np.asarray(picture))
            place += 4 + size
        return np.stack(frames)


class H264Coding(Coding):
    """The frames, one after the other, as an MP4 file by x264, on one thread."""

    name = f"H.264, x264 crf {_CRF}"

    def encode(self, clip: DecodedClip, number: int) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=8)
            stream.height, stream.width = clip.frames.shape[1:3]
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            stream.options = {"crf": str(_CRF)}
            for frame in clip.frames:
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(image))
            container.mux(stream.encode())
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        return decode_clip(data, every_frame).frames


class PaletteCoding(Coding):
    """`svilm data compress`; with `groups`, about so many palettes for all clips together."""

    def __init__(
        self, name: str, how: Clustering, block: PixelBlock, groups: int | None = None
    ) -> None:
        self.name, self.how, self.block, self.groups = name, how, block, groups
        self.shared: tuple[list[np.ndarray], Sequence[int]] | None = None  # group of each clip
        self._palettes: dict[bytes, bytes] = {}

    def prepare(self, clips: Sequence[DecodedClip]) -> int:
        how = self.how
        if self.groups is None:
            return 0
        each = math.ceil(how.sample * self.groups / len(clips))
        vectors = [
            sampled(vectors_of(clip.frames, self.block), each, how.seed, number)
            for number, clip in enumerate(clips)
        ]
        self.shared = shared_palettes(vectors, self.groups, how)
        return len(write_shared(self.shared[0]))

    def encode(self, clip: DecodedClip, number: int) -> bytes:
        vectors = vectors_of(clip.frames, self.block)
        if self.shared is None:
            palette = self.how.palette(sampled(vectors, self.how.sample, self.how.seed, number))
            made = compressed(clip, clip.timeline, vectors, palette, self.how, self.block)
            return write_clip(made)
        palettes, groups = self.shared
        palette = palettes[groups[number]]
        made = compressed(clip, clip.timeline, vectors, palette, self.how, self.block)
        data = write_clip(made, groups[number])
        self._palettes[data] = palette.tobytes()
        return data

    def parsed(self, data: bytes) -> PaletteClip:
        return read_clip(data + self._palettes.get(data, b""))

    def decode(self, data: bytes) -> np.ndarray:
        clip = self.parsed(data)
        return clip.decoded(np.arange(clip.frames))

    def decode_kept(self, data: bytes, ids: Tensor) -> Tensor:
        return self.on_device(data).tubelets(TUBELET, PATCH, ids)

    def on_device(self, data: bytes) -> PaletteFrames:
        """The codes as the loader hands them on."""
        clip = self.parsed(data)
        palette = np.zeros((MOST_ENTRIES, self.block.values), np.uint8)
        palette[: len(clip.palette)] = clip.palette
        codes = torch.from_numpy(clip.codes(slice(None)).copy())
        return PaletteFrames.of(codes[None], torch.from_numpy(palette)[None], self.block)


@dataclass
class MeasuredCoding:
    """A coding of some clips. Times are CPU seconds of a clip, medians over rounds.

    encode_s includes a clip's part of the time to find what all clips share, which is done once.
    """

    name: str
    bytes: int = 0
    zlib_bytes: int = 0  # of what zlib makes of it
    squared_error: int = 0
    values: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    kept_s: float = 0.0  # to decode KEPT of the tokens
    # Of palettes: the look-ups alone, of all tokens and of the kept ones, and the ratio by rounds.
    gather_s: float | None = None
    gather_kept_s: float | None = None
    ratios: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)  # the middle one of each clip

    @property
    def factor(self) -> float:
        return self.values / self.bytes

    @property
    def psnr(self) -> float:
        return psnr_of(self.squared_error, self.values)

    def as_json(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if k != "frames"}
        psnr = self.psnr if self.squared_error else None  # JSON has no infinity
        return {**values, "factor": self.factor, "psnr": psnr}


def measure(
    codings: Sequence[Coding], clips: Sequence[DecodedClip], rounds: int = ROUNDS
) -> list[MeasuredCoding]:
    """Measure codings of the same clips; all of them in turn, round by round, on one thread."""
    rows = [MeasuredCoding(coding.name) for coding in codings]
    coded: dict[tuple[int, int], bytes] = {}
    for row, (coding, found) in enumerate(zip(codings, rows, strict=True)):
        seconds, found.bytes = _timed(coding.prepare, clips)
        found.encode_s, found.zlib_bytes = seconds / len(clips), found.bytes
        for number, clip in enumerate(clips):
            data = coded[row, number] = coding.encode(clip, number)
            decoded = coding.decode(data)
            error = decoded.astype(np.int32) - clip.frames
            found.squared_error += int((error * error).sum(dtype=np.int64))
            found.values += decoded.size
            found.bytes += len(data)
            found.zlib_bytes += len(zlib.compress(data, _ZLIB_LEVEL))
            found.frames.append(decoded[len(decoded) // 2])
    ids = [kept_ids(clip.frames, number) for number, clip in enumerate(clips)]
    times = np.zeros((rounds, len(codings), 5))
    for each in times:
        for row, coding in enumerate(codings):
            for number, clip in enumerate(clips):
                each[row] += _times(coding, clip, number, coded[row, number], ids[number])
    each_clip = np.median(times, axis=0) / len(clips)
    for row, found in enumerate(rows):
        encode_s, found.decode_s, found.kept_s = each_clip[row, :3].tolist()
        found.encode_s += encode_s
        if isinstance(codings[row], PaletteCoding):
            found.gather_s, found.gather_kept_s = each_clip[row, 3:].tolist()
            found.ratios = (times[:, row, 3] / times[:, row, 4]).tolist()
    return rows


def _times(coding: Coding, clip: DecodedClip, number: int, data: bytes, ids: Tensor) -> np.ndarray:
    """CPU seconds: encode, decode all, decode kept tokens, and the look-ups alone of both."""
    encode, _ = _timed(coding.encode, clip, number)
    whole, _ = _timed(coding.decode, data)
    kept, _ = _timed(coding.decode_kept, data, ids)
    if not isinstance(coding, PaletteCoding):
        return np.array([encode, whole, kept, 0.0, 0.0])
    frames = coding.on_device(data)
    gather, expected = _timed(_decoded_then_taken, frames, ids)
    gather_kept, tokens = _timed(frames.tubelets, TUBELET, PATCH, ids)
    assert torch.equal(tokens, expected)
    return np.array([encode, whole, kept, gather, gather_kept])


def kept_ids(frames: np.ndarray, seed: int) -> Tensor:
    """KEPT of a clip's tokens, drawn by seed: int64 [1, n], ascending."""
    count, height, width = frames.shape[:3]
    total = (count // TUBELET) * (height // PATCH) * (width // PATCH)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(total, generator=generator)[: max(1, round(KEPT * total))]
    return chosen.sort().values[None]


def _tubelets(frames: Tensor, ids: Tensor) -> Tensor:
    """The tubelets `ids` [b, n] of frames uint8 [b, F, H, W, 3]: [b, n, pixels]."""
    b, f, h, w, _ = frames.shape
    cut = frames.view(b, f // TUBELET, TUBELET, h // PATCH, PATCH, w // PATCH, PATCH, 3)
    whole = cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, TUBELET * PATCH * PATCH * 3)
    return whole[torch.arange(b)[:, None], ids]


def _decoded_then_taken(frames: PaletteFrames, ids: Tensor) -> Tensor:
    return _tubelets(frames.decoded(), ids)


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.process_time()
    result = call(*arguments)
    return time.process_time() - began, result
