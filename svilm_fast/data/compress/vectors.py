"""From frames to vectors of blocks and back to codes."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from svilm_fast.data.compress.clustering import Clustering, nearest
from svilm_fast.data.decode import DecodedClip
from svilm_fast.data.palettes.codes import pack
from svilm_fast.data.palettes.format import PaletteClip, PixelBlock
from svilm_fast.data.timeline import Timeline


class Vectors(StrEnum):
    COLOURS = "colours"
    PATCHES = "patches"
    BLOCKS = "blocks"


BLOCKS = {
    Vectors.COLOURS: PixelBlock(1, 1, 1),
    Vectors.PATCHES: PixelBlock(1, 4, 4),
    Vectors.BLOCKS: PixelBlock(2, 2, 2),
}


def vectors_of(frames: np.ndarray, block: PixelBlock) -> np.ndarray:
    """Blocks of frames uint8 [F, h, w, 3]: uint8 [n, V]; edges are repeated where none is left."""
    grid = block.grid(*frames.shape[:3])
    missing = [count * side - size for count, side, size in zip(grid, block, frames.shape)]
    if any(missing):
        frames = np.pad(frames, [*((0, size) for size in missing), (0, 0)], mode="edge")
    (t, h, w), (x, y, z) = grid, block
    blocks = frames.reshape(t, x, h, y, w, z, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    return blocks.reshape(-1, block.values)


def sampled(vectors: np.ndarray, count: int, seed: int, key: int) -> np.ndarray:
    """At most `count` vectors, drawn without repeats by (seed, key of the sample)."""
    if len(vectors) <= count:
        return vectors
    drawn = np.random.default_rng([seed, key & (1 << 64) - 1])
    return vectors[np.sort(drawn.choice(len(vectors), count, replace=False))]


def compressed(
    clip: DecodedClip,
    timeline: Timeline,
    vectors: np.ndarray,
    palette: np.ndarray,
    how: Clustering,
    block: PixelBlock,
) -> PaletteClip:
    """A clip with a code for each of its vectors; `timeline` is that of its frames."""
    frames, height, width = clip.frames.shape[:3]
    codes = nearest(vectors, palette).reshape(block.grid(frames, height, width))
    return PaletteClip(
        how.method,
        block,
        palette,
        pack(codes, bits_of(how.entries)),
        clip.index,
        timeline,
        height,
        width,
        clip.fps,
        clip.source_size,
    )


def bits_of(entries: int) -> int:
    """Bits of a code below `entries`, at least 1."""
    return max(1, (entries - 1).bit_length())
