"""Tables of learned positions for another grid or length."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized_space(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Positions [h * w, C] of another grid: bicubic with antialiasing, as timm and open_clip do."""
    image = table.T.unflatten(1, grid)[None]
    resized = F.interpolate(image, wanted, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].flatten(1).T.contiguous()


def resized_time(table: Tensor, length: int, *, keep_ends: bool) -> Tensor:
    """Positions [n, C] of another length, linearly interpolated.

    keep_ends: the first and the last entry stay (tokens of a text); otherwise both tables span the
    same time.
    """
    line = table.T[None]
    resized = F.interpolate(line, length, mode="linear", align_corners=keep_ends)
    return resized[0].T.contiguous()
