"""Tile shapes and limits of the temporal kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...device import traits
from ...launch import power_of_two

MAX_BCE_SEGMENTS = 512
MAX_POOL_SEGMENTS = 64
# Tokens per tile of the pooling kernels.
POOL_TOKENS = 64
# Columns per tile. They are the rows of the product, of which wgmma needs at least 64.
POOL_COLUMNS = 128
_TILE_ELEMENTS = 8192


def unsupported_bce(segments: Tensor) -> str | None:
    """The reason why the loss kernels do not support these segments [b, T, D], or None."""
    return _unsupported(segments, segments.shape[1], MAX_BCE_SEGMENTS)


def unsupported_pool(tokens: Tensor, num_segments: int) -> str | None:
    """The reason why the pooling kernels do not support these tokens, or None."""
    if tokens.dtype == torch.float32 and traits(tokens.device).capability >= (10, 0):
        return "Triton before 3.9 computes fp32 products in tf32 on this GPU"
    return _unsupported(tokens, num_segments, MAX_POOL_SEGMENTS)


def _unsupported(rows: Tensor, segments: int, most: int) -> str | None:
    if rows.dtype == torch.float64:
        return "the kernels take fp16, bf16 and fp32, not float64"
    if segments > most:
        return f"{segments} segments are more than {most}"
    return None


def bce_blocks(segments: int, width: int) -> dict[str, int]:
    """Constants of the loss kernels: one program processes all segments of a sample."""
    block_segments = power_of_two(max(segments, 2))
    block_width = min(power_of_two(width), max(16, _TILE_ELEMENTS // block_segments))
    return {"BLOCK_T": block_segments, "BLOCK_D": block_width, "num_warps": 4}
