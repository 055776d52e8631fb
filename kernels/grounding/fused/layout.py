"""Padded sizes and dtypes of the kernel buffers, and tile shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import power_of_two

MAX_GROUPS = 64
MAX_NOUNS = 64
MAX_DIM = 1024
DEFAULT_WORKSPACE_BYTES = 256 << 20


@dataclass(frozen=True)
class GroundingTile:
    """A tile of the product nouns x groups, with its warps and pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Layout:
    """Sizes of one call; `padded_*` are the sizes of the kernel buffers.

    Groups and nouns are padded to powers of two, so that a tile holds whole videos and whole
    captions and the softmax over groups stays inside it.
    """

    videos: int
    captions: int
    num_groups: int
    num_nouns: int
    dim: int
    dtype: torch.dtype

    @property
    def padded_groups(self) -> int:
        return power_of_two(self.num_groups, 8)

    @property
    def padded_nouns(self) -> int:
        return power_of_two(self.num_nouns)

    @property
    def padded_dim(self) -> int:
        return 16 if self.dim <= 16 else 32 if self.dim <= 32 else -(-self.dim // 64) * 64

    @property
    def rows(self) -> int:
        return self.captions * self.padded_nouns

    def videos_per_chunk(self, workspace_bytes: int, tile_columns: int) -> int:
        """Videos whose part of d(dots) and of the group gradient fits the workspace."""
        per_token = self.rows * self.dtype.itemsize + self.padded_dim * 4
        fitting = workspace_bytes // (per_token * self.padded_groups)
        per_tile = tile_columns // self.padded_groups
        return min(self.videos, max(1, fitting // per_tile) * per_tile)


def forward_tile(layout: Layout, capability: tuple[int, int]) -> GroundingTile:
    """Tile of the scores kernel; two blocks stay resident on an SM, so one computes exponentials
    while the other's products run.
    """
    if layout.dtype == torch.float32:
        return GroundingTile(64, 64, min(32, layout.padded_dim), 4, 2)
    if capability < (9, 0):
        return GroundingTile(128, 64, min(64, layout.padded_dim), 4, 3)
    return GroundingTile(128, 128, min(64, layout.padded_dim), 8, 3)


def backward_tile(layout: Layout, capability: tuple[int, int], need_beta: bool) -> GroundingTile:
    """Tile of the kernel that writes the gradient of the dot products.

    The gradient of beta needs about 50 more registers. With it, only one block with a 128 x 128
    tile fits an SM of sm_90, so nothing overlaps with its epilogue; three blocks of 64 x 128 fit.
    sm_80 spills with tiles above 64 x 64. sm_100 keeps its accumulator in tensor memory, and its
    products run at half rate below 128 rows.
    """
    if layout.dtype == torch.float32:
        return GroundingTile(64, 64, min(32, layout.padded_dim), 4, 2)
    depth = min(64, layout.padded_dim)
    if capability < (9, 0):
        return GroundingTile(64, 64, depth, 4, 3)
    if capability < (10, 0) and need_beta:
        return GroundingTile(64, 128, depth, 4, 3)
    return GroundingTile(128, 128, depth, 8, 3)


def layout_of(groups: Tensor, nouns: Tensor) -> Layout:
    """The layout of a call; half-precision inputs are processed in float16, others in float32.

    Casting the bfloat16 entries of unit vectors to float16 is exact down to 2^-14 and has an
    absolute error of at most 2^-25 below. float16 rounds the gradient of the dot products eight
    times finer than bfloat16.
    """
    half = groups.dtype in (torch.float16, torch.bfloat16) and nouns.dtype == groups.dtype
    return Layout(
        videos=groups.shape[0],
        captions=nouns.shape[0],
        num_groups=groups.shape[1],
        num_nouns=nouns.shape[1],
        dim=groups.shape[2],
        dtype=torch.float16 if half else torch.float32,
    )


def needs_copy(groups: Tensor, layout: Layout) -> bool:
    """Whether the group tokens must be copied: cast, padded, or not contiguous."""
    return (
        groups.dtype != layout.dtype
        or layout.padded_groups != layout.num_groups
        or layout.padded_dim != layout.dim
        or not groups.is_contiguous()
    )


def unsupported(groups: Tensor, nouns: Tensor, *scalars: Tensor) -> str | None:
    """The reason why the kernels do not support a call, or None."""
    if torch.float64 in {tensor.dtype for tensor in (groups, nouns, *scalars)}:
        return "float64 is computed by the reference"
    if groups.dtype != nouns.dtype:
        return f"groups are {groups.dtype} and nouns {nouns.dtype}"
    if groups.shape[1] > MAX_GROUPS or nouns.shape[1] > MAX_NOUNS or groups.shape[2] > MAX_DIM:
        return (
            f"{groups.shape[1]} groups, {nouns.shape[1]} nouns and width {groups.shape[2]} are "
            f"beyond {MAX_GROUPS}, {MAX_NOUNS} and {MAX_DIM}"
        )
    if 0 in groups.shape or 0 in nouns.shape:
        return "the batch is empty"
    # Triton before 3.9 silently lowers float32 products to tf32 on sm_100.
    on_gpu = groups.dtype == torch.float32 and groups.device.type == "cuda"
    if on_gpu and traits(groups.device).capability >= (10, 0):
        return "float32 inputs have no kernel on this GPU; use bfloat16 or float16"
    return None
