"""Film strips and token overlays, as pixel arrays."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_erosion

from svilm_fast.models.token_groups import NO_GROUP


def film_strip(frames: np.ndarray, gap: int, background: np.ndarray) -> np.ndarray:
    """Frames side by side: uint8 [f, h, w, 3] to uint8 [h, f w + (f - 1) gap, 3]."""
    count, height, width, _ = frames.shape
    strip = np.empty((height, count * width + (count - 1) * gap, 3), np.uint8)
    strip[:] = background
    for place, frame in enumerate(frames):
        left = place * (width + gap)
        strip[:, left : left + width] = frame
    return strip


def token_frames(frames: np.ndarray, positions: int) -> np.ndarray:
    """The middle frame of each temporal token position: uint8 [F, H, W, 3] to [positions, ...]."""
    per_position = len(frames) // positions
    return frames[per_position // 2 :: per_position][:positions]


def upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour upsampling of a grid [h, w] to `height` x `width` pixels."""
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    return grid[rows[:, None], columns[None, :]]


def tint(
    frame: np.ndarray, groups: np.ndarray, colours: np.ndarray, strength: float = 0.6
) -> np.ndarray:
    """Colour every pixel by the group of its token.

    frame: uint8 [H, W, 3]; groups: int [h, w] group of each token, NO_GROUP where the token was
    dropped, whose pixels keep their colour; colours: uint8 [G, 3].
    """
    index = upsample(groups, *frame.shape[:2])
    mixed = (1 - strength) * frame + strength * colours[index.clip(min=0)]
    kept = np.where((index == NO_GROUP)[..., None], frame, mixed)
    return np.round(kept).astype(np.uint8)


def keep_lit(frame: np.ndarray, kept: np.ndarray, ground: float = 225.0) -> np.ndarray:
    """Leave kept tokens as they are and fade the others to a light grey.

    frame: uint8 [H, W, 3]; kept: bool [h, w] of each token; ground: the grey, 0 to 255.
    """
    inside = upsample(kept, *frame.shape[:2])[..., None]
    faded = 0.12 * frame + 0.88 * ground
    return np.where(inside, frame, faded.round()).astype(np.uint8)


def spotlight(
    frame: np.ndarray, groups: np.ndarray, chosen: int, colour: np.ndarray, shade: float = 0.45
) -> np.ndarray:
    """Leave the tokens of one group bright with a coloured outline, and darken all others.

    Arguments as in `tint`; shade: brightness of the other tokens.
    """
    inside = upsample(groups, *frame.shape[:2]) == chosen
    grey = frame.mean(axis=-1, keepdims=True)
    lit = np.where(inside[..., None], frame, shade * (0.4 * frame + 0.6 * grey))
    width = max(1, min(frame.shape[:2]) // 48)
    edge = inside & ~binary_erosion(inside, iterations=width)
    return np.round(np.where(edge[..., None], colour, lit)).astype(np.uint8)
