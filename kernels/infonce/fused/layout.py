"""Tile shapes, strips and chunks of one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...backend import interpreted
from ...device import DeviceTraits, traits

MAX_DIM = 1024
# Rows or columns per program of `finish_kernel`.
LINES = 64
DEFAULT_WORKSPACE_BYTES = 1 << 29
# With fewer rows of the gradient of the logits per chunk, its products do not fill a GPU.
DEFAULT_ROWS = 2048
# Limit of the row sums of a chunk, one value per row and column tile, so that they stay in L2.
ROW_SUM_BYTES = 1 << 24
MAX_STRIP_TILES = 8


@dataclass(frozen=True)
class InfonceTile:
    """A tile of videos x texts; `described` means that tensor descriptors load it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    described: bool

    def options(self) -> dict[str, Any]:
        """The constants of a kernel that processes this tile."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "DESCRIBED": self.described,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def unsupported(videos: Tensor) -> str | None:
    """The reason why the kernels do not support these embeddings, or None."""
    dim = videos.shape[1]
    if videos.dtype == torch.float64:
        return "float64 has no tensor-core path"
    if dim % 16 != 0 or dim > MAX_DIM:
        return f"D must be a multiple of 16 up to {MAX_DIM}, got {dim}"
    if videos.dtype == torch.float32 and traits(videos.device).capability[0] >= 10:
        import triton

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
            return f"Triton {triton.__version__} would round fp32 products to tf32 on this GPU"
    return None


def pointer_depth(videos: Tensor) -> int:
    """Depth per step of a product that loads through pointers; divides D, so no mask is needed."""
    if videos.dtype == torch.float32:
        # A deeper step of three tf32 products spills.
        return 16
    return next(depth for depth in (64, 32, 16) if videos.shape[1] % depth == 0)


def tile_of(videos: Tensor) -> InfonceTile:
    """The tile of forward and backward; on the main path two blocks fit an SM."""
    half = videos.dtype != torch.float32
    if traits(videos.device).capability[0] < 9:
        # On these GPUs descriptors load single elements, whereas pointers load 16 bytes.
        depth = min(32, pointer_depth(videos))
        return (
            InfonceTile(128, 64, depth, 4, 4, False)
            if half
            else InfonceTile(64, 64, depth, 4, 3, False)
        )
    # A descriptor fills with zeros past D, so the depth need not divide it.
    depth = next(depth for depth in (64, 32, 16) if videos.shape[1] >= depth)
    return (
        InfonceTile(128, 128, depth, 8, 3, True)
        if half
        else InfonceTile(64, 64, min(32, depth), 4, 2, True)
    )


def tile_operands(videos: Tensor, texts: Tensor, tile: InfonceTile) -> tuple[Any, Any]:
    """Both matrices as operands of `tile_dots`: descriptors or pointers."""
    if not tile.described:
        return videos, texts
    from triton.tools.tensor_descriptor import TensorDescriptor

    return (
        TensorDescriptor.from_tensor(videos, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(texts, [tile.columns, tile.depth]),
    )


def tile_target(buffer: Tensor, tile: InfonceTile) -> Any:
    """A matrix to which a kernel stores tiles: a descriptor, which clips, or a pointer."""
    if not tile.described:
        return buffer
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(buffer, [tile.rows, tile.columns])


def product_options(videos: Tensor) -> dict[str, Any]:
    """Constants of the tile product."""
    return {
        # Three tf32 products reach the accuracy of fp32 on tensor cores.
        "PRECISION": "tf32x3" if videos.dtype == torch.float32 else "ieee",
        # The interpreter has no bf16 products.
        "UPCAST": interpreted() and videos.dtype == torch.bfloat16,
    }


def strip_tiles(row_tiles: int, column_tiles: int, device: DeviceTraits) -> int:
    """Row tiles per program: long strips need fewer shuffles, short strips fill the GPU."""
    waves = row_tiles * column_tiles // (4 * device.sm_count)
    return min(MAX_STRIP_TILES, max(1, waves))


def forward_chunk_rows(rows: int, columns: int, tile: InfonceTile) -> int:
    """Rows whose partial sums fit ROW_SUM_BYTES; at least one full strip."""
    per_row = 4 * math.ceil(columns / tile.columns)
    strip = MAX_STRIP_TILES * tile.rows
    return min(rows, max(1, ROW_SUM_BYTES // per_row // strip) * strip)


def padded_columns(columns: int) -> int:
    """Row stride of the gradient chunk: rows start at multiples of 128 bytes."""
    return -(-columns // 64) * 64


def backward_chunk_rows(
    videos: Tensor, texts: Tensor, tile: InfonceTile, need_texts: bool, workspace_bytes: int
) -> int:
    """Rows of the gradient of the logits per chunk, a multiple of the rows of a tile.

    The workspace holds the fp32 sums, the fp16 copies of bf16 inputs and the chunk. If it is too
    small, a chunk is one row of tiles. All chunks but the last have equal size.
    """
    rows = videos.shape[0]
    fixed, per_row = _backward_bytes(videos, texts, need_texts)
    fitting = max(1, (workspace_bytes - fixed) // per_row // tile.rows) * tile.rows
    chunks = -(-rows // fitting)
    return -(-rows // chunks // tile.rows) * tile.rows


def default_workspace_bytes(videos: Tensor, texts: Tensor) -> int:
    """DEFAULT_WORKSPACE_BYTES, or more if that holds fewer than DEFAULT_ROWS rows."""
    fixed, per_row = _backward_bytes(videos, texts, need_texts=True)
    return max(DEFAULT_WORKSPACE_BYTES, fixed + min(DEFAULT_ROWS, videos.shape[0]) * per_row)


def _backward_bytes(videos: Tensor, texts: Tensor, need_texts: bool) -> tuple[int, int]:
    """Temporary bytes of backward: independent of the chunk, and per row of the chunk."""
    rows, dim = videos.shape
    columns = texts.shape[0]
    half = videos.dtype != torch.float32
    fixed = 4 * columns * dim if half and need_texts else 0
    if videos.dtype == torch.bfloat16:
        fixed += 2 * (rows + columns) * dim
    return fixed, padded_columns(columns) * (2 if half else 4) + 4 * dim
