"""Decoding of compressed clips to frames, as other decoders give them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.decode import Choose, DecodedClip, scaled_size
from svilm_fast.data.errors import DataError, OversizedVideoError, PaletteError
from svilm_fast.data.palettes.format import is_compressed, method_of, read_clip

_COPIES = 2  # blocks, and the frames that are made of them


def decode_palettes(
    data: bytes, choose: Choose, *, short_side: int | None = None, limits: LimitsConfig | None
) -> DecodedClip:
    """`decode_clip` for a compressed clip.

    The timeline is that of its frames; `index` of the result has their places in the source video.
    """
    clip = read_clip(data, limits)
    chosen = np.asarray(choose(clip.timeline), dtype=np.int64)
    if (
        chosen.size == 0
        or chosen[0] < 0
        or chosen[-1] >= clip.frames
        or (np.diff(chosen) < 0).any()
    ):
        raise DataError("the chosen frames must be ascending and at least one")
    most, rows = (limits or LimitsConfig()).memory_bytes, len(np.unique(chosen // clip.block.time))
    blocks = rows * clip.grid[1] * clip.grid[2]  # those at the edges are decoded whole
    needed = _COPIES * blocks * clip.block.values
    if needed > most:
        raise OversizedVideoError(
            f"decoding takes {needed} bytes, more than limits.memory_bytes={most}"
        )
    frames = _scaled(clip.decoded(chosen), short_side)
    return DecodedClip(frames, clip.index[chosen], clip.timeline, clip.fps, clip.source_size)


def _scaled(frames: np.ndarray, short_side: int | None) -> np.ndarray:
    height, width = frames.shape[1:3]
    size = scaled_size(width, height, short_side)
    if size == (width, height):
        return frames
    # Slow to import, and seldom needed: clips are stored in the size that is read.
    import torch
    from torch.nn.functional import interpolate

    channels_first = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    scaled = interpolate(channels_first, size=size[::-1], mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def check_compression(data: bytes, config: DataConfig, *, required: bool) -> None:
    """Raise PaletteError for a clip that is compressed otherwise than `data.compression` says.

    required: a video that is not compressed is refused too.
    """
    wanted, found = config.compression, method_of(data) if is_compressed(data) else "none"
    if found == wanted or (found == "none" and not required):
        return
    if found == "none":
        raise PaletteError(
            f"the clip is a video, and data.compression={wanted}: compress it with `svilm data "
            "compress`, or set data.compression=none"
        )
    raise PaletteError(
        f"the clip is compressed with {found}: set data.compression={found} (now {wanted})"
    )


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Put sample and shard before the message of a PaletteError."""
    try:
        yield
    except PaletteError as error:
        raise PaletteError(f"{label}: {error}") from None
