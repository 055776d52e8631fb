"""Tile shapes, strips and chunks of one call."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import launch
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
# Two rows of every tile are added in turn, so rounding grows with the length of a strip.
MAX_STRIP_TILES = 16
# PyTorch allocates this workspace of cuBLAS in the first product of a process (Hopper: 32 MiB).
LIBRARY_BYTES = 1 << 25
# Parts of the sum over the columns in dV = dS T; a part has at least this many columns.
MAX_SPLITS = 8
LEAST_SPLIT_DEPTH = 1024
# Assumed, not measured: the output tile of a product of cuBLAS, its FLOP/s, the bytes/s of DRAM,
# and the seconds that a further chunk takes for launches.
PRODUCT_TILE = (128, 256)
PRODUCT_RATE = 680e12
MEMORY_RATE = 4.2e12
CHUNK_SECONDS = 15e-6


@dataclass(frozen=True)
class InfonceTile:
    """A tile of videos x texts.

    `described` means that tensor descriptors load it. With `blocks`, that many programs of the main
    path fit an SM, and its loops over tiles and depth are flattened.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    described: bool
    blocks: int = 0

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

    def resident_options(self, videos: Tensor) -> dict[str, Any]:
        """The constants of a kernel whose tiles have the full depth."""
        return {
            "DEPTH": videos.shape[1],
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "UPCAST": product_options(videos)["UPCAST"],
            "num_warps": self.warps,
            "num_stages": self.stages,
        }

    def programs(self, tiles: int, like: Tensor) -> int:
        """Programs of a launch whose programs loop over tiles: as many as fit the GPU."""
        return min(tiles, self.blocks * traits(like.device).sm_count) if self.blocks else tiles

    def register_limit(self) -> dict[str, int]:
        """An option for kernels that fit `blocks` on an SM without spilling if ptxas has to."""
        return {"maxnreg": 65536 // (self.blocks * self.warps * 32)} if self.blocks else {}


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
    # On sm_100 one block fits either way.
    blocks = 2 if traits(videos.device).capability[0] == 9 else 0
    return (
        InfonceTile(128, 128, depth, 8, 3, True, blocks)
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
    """A matrix to which a kernel stores half tiles: a descriptor, which clips, or a pointer."""
    if not tile.described:
        return buffer
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(buffer, [tile.rows, tile.columns // 2])


def product_options(videos: Tensor) -> dict[str, Any]:
    """Constants of the tile product."""
    return {
        # Three tf32 products reach the accuracy of fp32 on tensor cores.
        "PRECISION": "tf32x3" if videos.dtype == torch.float32 else "ieee",
        # The interpreter has no bf16 products.
        "UPCAST": interpreted() and videos.dtype == torch.bfloat16,
    }


def strip_row_tiles(row_tiles: int, column_tiles: int, device: DeviceTraits, resident: bool) -> int:
    """Row tiles per program: long strips need fewer shuffles, short strips fill the GPU."""
    if resident:
        return launch.strip_tiles(column_tiles, row_tiles, device.sm_count, MAX_STRIP_TILES)
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


class BackwardPlan(NamedTuple):
    """Rows of the gradient of the logits per chunk, and parts of the sum of dV = dS T."""

    rows: int
    splits: int


def backward_plan(
    videos: Tensor,
    texts: Tensor,
    tile: InfonceTile,
    needs: tuple[bool, bool],
    workspace_bytes: int,
) -> BackwardPlan:
    """The fastest chunk that fits the workspace, a multiple of the rows of a tile.

    The workspace holds everything that `backward` allocates besides its outputs. If it is too
    small, a chunk is one row of tiles. `needs`: whether dV = dS T and dT = dS^T V are computed.
    """
    rows, dim = videos.shape
    columns = texts.shape[0]
    return _backward_plan(
        rows,
        dim,
        columns,
        videos.dtype,
        tile.rows,
        *needs,
        workspace_bytes,
        max(1, min(MAX_SPLITS, columns // LEAST_SPLIT_DEPTH)) if needs[0] else 1,
        traits(videos.device).sm_count,
    )


@functools.lru_cache(maxsize=64)
def _backward_plan(
    rows: int,
    dim: int,
    columns: int,
    dtype: torch.dtype,
    tile_rows: int,
    sum_videos: bool,
    sum_texts: bool,
    workspace_bytes: int,
    most_splits: int,
    sm_count: int,
) -> BackwardPlan:
    best: tuple[float, BackwardPlan] | None = None
    for splits in range(1, most_splits + 1):
        fixed, per_row = _backward_bytes(rows, columns, dim, dtype, sum_videos, sum_texts, splits)
        most = max(1, (workspace_bytes - fixed) // per_row // tile_rows)
        most = min(most, -(-rows // tile_rows))
        if splits > 1 and fixed + most * tile_rows * per_row > workspace_bytes:
            break
        for tiles in range(max(1, most // 2), most + 1):
            plan = BackwardPlan(tiles * tile_rows, splits)
            time = _products_time(plan, rows, columns, dim, sm_count, sum_videos, sum_texts)
            # Of equal plans the one with fewer splits and a smaller chunk.
            if best is None or time < best[0]:
                best = time, plan
    assert best is not None
    return best[1]


def _products_time(
    plan: BackwardPlan,
    rows: int,
    columns: int,
    dim: int,
    sm_count: int,
    sum_videos: bool,
    sum_texts: bool,
) -> float:
    """Predicted seconds of the parts of the products of cuBLAS that depend on the plan."""
    across = math.ceil(dim / PRODUCT_TILE[1])
    tile_time = 2 * PRODUCT_TILE[0] * PRODUCT_TILE[1] * columns / (PRODUCT_RATE / sm_count)
    chunks = math.ceil(rows / plan.rows)
    time = chunks * CHUNK_SECONDS
    if sum_texts:
        # Every chunk but the first reads the fp32 sums again.
        time += chunks * 8 * columns * dim / MEMORY_RATE
    if sum_videos:
        for number, height in ((chunks - 1, plan.rows), (1, rows - (chunks - 1) * plan.rows)):
            tiles = math.ceil(height / PRODUCT_TILE[0]) * across * plan.splits
            time += number * math.ceil(tiles / sm_count) * tile_time / plan.splits
            time += number * 8 * (plan.splits - 1) * height * dim / MEMORY_RATE
    return time


def default_workspace_bytes(videos: Tensor, texts: Tensor) -> int:
    """DEFAULT_WORKSPACE_BYTES, or more if that holds fewer than DEFAULT_ROWS rows."""
    rows, dim = videos.shape
    fixed, per_row = _backward_bytes(rows, texts.shape[0], dim, videos.dtype, True, True, 1)
    return max(DEFAULT_WORKSPACE_BYTES, fixed + min(DEFAULT_ROWS, rows) * per_row)


def _backward_bytes(
    rows: int,
    columns: int,
    dim: int,
    dtype: torch.dtype,
    sum_videos: bool,
    sum_texts: bool,
    splits: int,
) -> tuple[int, int]:
    """Temporary bytes of backward: independent of the chunk, and per row of the chunk."""
    half = dtype != torch.float32
    # The logarithms of forward and the partial sums of the gradient of the scale are of this size.
    fixed = LIBRARY_BYTES + 16 * (rows + columns)
    if sum_texts:
        fixed += 4 * columns * dim
    if dtype == torch.bfloat16:
        # The fp16 copies of the factors.
        fixed += 2 * dim * (rows * sum_texts + columns * sum_videos)
    return fixed, padded_columns(columns) * (2 if half else 4) + 4 * dim * splits * sum_videos
