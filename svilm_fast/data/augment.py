"""Cropping, scaling and mirroring of clips; random numbers come from (seed, epoch, sample key)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from svilm_fast.data.config import AugmentConfig

DRAWS = 5  # uniform numbers per clip: area, ratio, x, y, flip

_DIRECTION = re.compile(
    r"\b(left|right|left-?wards?|right-?wards?|(?:counter|anti)?-?clockwise)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Window:
    """A crop in pixels of the decoded frames, and whether it is mirrored."""

    x: int
    y: int
    width: int
    height: int
    flipped: bool = False

    def fractions(self, width: int, height: int) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 as shares of the frame."""
        right, bottom = self.x + self.width, self.y + self.height
        return self.x / width, self.y / height, right / width, bottom / height


def speaks_of_direction(caption: str) -> bool:
    """Whether mirroring the video would make the caption wrong."""
    return _DIRECTION.search(caption) is not None


def random_window(
    width: int, height: int, uniform: np.ndarray, config: AugmentConfig, caption: str
) -> Window:
    """The training crop of a clip from DRAWS uniform numbers in [0, 1)."""
    low, high = config.crop_scale
    area = width * height * (low + (high - low) * float(uniform[0]))
    log_low, log_high = math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])
    ratio = math.exp(log_low + (log_high - log_low) * float(uniform[1]))
    crop_width = max(1, min(width, round(math.sqrt(area * ratio))))
    crop_height = max(1, min(height, round(math.sqrt(area / ratio))))
    x = int(float(uniform[2]) * (width - crop_width + 1))
    y = int(float(uniform[3]) * (height - crop_height + 1))
    may_flip = config.flip_directional or not speaks_of_direction(caption)
    flipped = may_flip and float(uniform[4]) < config.flip
    # fp32 numbers just below 1 may round up
    x, y = min(x, width - crop_width), min(y, height - crop_height)
    return Window(x, y, crop_width, crop_height, flipped)


def centre_window(width: int, height: int, margin: float) -> Window:
    """The evaluation crop: a centred square, `margin` times smaller than the short side."""
    side = max(1, min(width, height, round(min(width, height) / margin)))
    return Window((width - side) // 2, (height - side) // 2, side, side)


def cut(
    frames: np.ndarray, window: Window, size: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Cut the window out of uint8 [F, h, w, 3] frames and scale it to uint8 [F, size, size, 3].

    The result is written into `out` where it is given.
    """
    rows = slice(window.y, window.y + window.height)
    columns = slice(window.x, window.x + window.width)
    clip = torch.from_numpy(np.ascontiguousarray(frames[:, rows, columns]))
    if clip.shape[1:3] != (size, size):
        channels_first = clip.permute(0, 3, 1, 2)
        clip = interpolate(
            channels_first, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        ).permute(0, 2, 3, 1)
    clip = clip.flip(2) if window.flipped else clip
    return clip if out is None else out.copy_(clip)
