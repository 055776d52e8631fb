"""Tile shapes and grids of grouping, chosen by shared memory, registers and waves."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...backend import interpreted
from ...device import DeviceTraits
from ...launch import power_of_two

MAX_GROUPS = 64
MAX_WIDTH = 1024
# Sums [G, columns] of a program in fp32 that compile without spilling (static table): of the whole
# width on Hopper and elsewhere, and of a slab, whose program has one more loop.
MAX_SUMS_HOPPER = 24576
MAX_SUMS = 12288
MAX_SUMS_OF_SLAB = 8192
MAX_SUMS_FP32 = 2048
# For the assignment tile, reductions and changes of layout.
_SCRATCH_BYTES = 8 * 1024
# Above this many registers per thread for sums and prefetched tokens, the compiler spills.
_MAX_HELD_REGISTERS = 144
# A program's start and end (queries in, sums out) take about as long as this many token tiles.
_FIXED_TILES = 2
WARPS = 8


@dataclass(frozen=True)
class GroupingPlan:
    """How one direction of a call is cut into programs and tiles.

    Attributes:
        block_tokens, block_width, num_blocks, block_groups: a tile is `block_tokens` tokens in
            `num_blocks` blocks of `block_width` columns, against padded groups.
        own_blocks, slabs: a program sums over `own_blocks` of the blocks; `slabs` programs share
            a tile.
        splits, chunk: programs per sample and slab, and tokens of each.
        resident: forward keeps its blocks of the queries in shared memory for all its tiles.
        prefetch: forward loads this many blocks of the next tile into registers; the others are
            double-buffered in shared memory.
        stages: software pipeline depth of the token loads.
        upcast: the interpreter needs bf16 operands in fp32.
    """

    block_tokens: int
    block_width: int
    num_blocks: int
    block_groups: int
    own_blocks: int
    slabs: int
    splits: int
    chunk: int
    resident: bool
    prefetch: int
    stages: int
    upcast: bool


def unsupported(groups: int, width: int, dtype: torch.dtype, traits: DeviceTraits) -> str | None:
    """Why the fused kernels cannot take these sizes, or None."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"tokens are {dtype}, the kernels take fp16, bf16 and fp32"
    if groups > MAX_GROUPS:
        return f"{groups} groups are more than {MAX_GROUPS}"
    if width > MAX_WIDTH or width % 16:
        return f"width {width} is not a multiple of 16 up to {MAX_WIDTH}"
    if dtype == torch.float32 and traits.capability >= (10, 0):
        return "Triton before 3.9 computes fp32 products in tf32 on this GPU"
    return None


def _tile(groups: int, width: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Padded groups, width of a block, blocks; 128 wide blocks took the fewest registers."""
    block_groups = power_of_two(groups, 16)
    wide = width % 128 == 0 and dtype.itemsize == 2 and block_groups <= 32
    block_width = 128 if wide else min(64, power_of_two(width))
    return block_groups, block_width, -(-width // block_width)


def _own_blocks(blocks: int, block_sums: int, dtype: torch.dtype, traits: DeviceTraits) -> int:
    """How many blocks' sums a program can hold in registers without spilling."""
    whole = MAX_SUMS_HOPPER if traits.capability[0] == 9 else MAX_SUMS
    most = MAX_SUMS_OF_SLAB
    if dtype.itemsize == 4:
        whole = most = MAX_SUMS_FP32
    if blocks * block_sums <= whole:
        return blocks
    fitting = (n for n in range(1, blocks + 1) if blocks % n == 0 and n * block_sums <= most)
    return max(fitting, default=1)


def _splits(batch: int, tiles: int, slots: int) -> int:
    """How many programs share a sample: least (waves x tiles of the longest program)."""

    def time(splits: int) -> float:
        waves = -(-batch * splits // slots)
        return waves * (-(-tiles // splits) + _FIXED_TILES)

    return min(range(1, min(tiles, 64) + 1), key=lambda splits: (time(splits), splits))


@functools.lru_cache(maxsize=1024)
def plan(
    batch: int,
    length: int,
    groups: int,
    width: int,
    dtype: torch.dtype,
    traits: DeviceTraits,
    backward: bool,
) -> GroupingPlan:
    """The plan of one direction; cached, since the host may not spend time on it."""
    half = dtype.itemsize == 2
    block_groups, block_width, num_blocks = _tile(groups, width, dtype)
    own_blocks = _own_blocks(num_blocks, block_groups * block_width, dtype, traits)
    slabs = num_blocks // own_blocks
    # 64 rows are what wgmma needs. The three tf32 products of fp32 leave registers for 16 rows.
    block_tokens = 64 if half else 16
    if half and block_groups > 32 and traits.capability < (9, 0):
        block_tokens = 32
    query_bytes = block_groups * block_width * own_blocks * dtype.itemsize
    block_bytes = block_tokens * block_width * dtype.itemsize
    limit = traits.shared_memory_bytes - _SCRATCH_BYTES
    resident = half and not backward and block_bytes * own_blocks + query_bytes <= limit
    # A program with more slabs beside it has an inner loop, and the tiles' own loop no pipeline.
    stages = 2 if half and (backward or slabs == 1) else 1
    prefetch = 0
    if resident and slabs == 1:
        prefetch = max(0, 2 * own_blocks - (limit - query_bytes) // block_bytes)
        threads = 32 * WARPS
        sums = block_groups * block_width * own_blocks // threads
        if sums + block_bytes * prefetch // 4 // threads > _MAX_HELD_REGISTERS:
            prefetch, stages = 0, 1
    tiles = max(1, -(-length // block_tokens))
    splits = _splits(max(batch, 1) * slabs, tiles, traits.sm_count)
    return GroupingPlan(
        block_tokens=block_tokens,
        block_width=block_width,
        num_blocks=num_blocks,
        block_groups=block_groups,
        own_blocks=own_blocks,
        slabs=slabs,
        splits=splits,
        chunk=-(-tiles // splits) * block_tokens,
        resident=resident,
        prefetch=prefetch,
        stages=stages,
        upcast=interpreted() and dtype == torch.bfloat16,
    )
