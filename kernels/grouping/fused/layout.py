"""Chooses tile shapes and grids of grouping from shared memory, registers and waves."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...backend import interpreted
from ...device import DeviceTraits
from ...launch import power_of_two

MAX_GROUPS = 64
MAX_WIDTH = 1024
# Largest number of fp32 sums [G, columns] per program that compiles without spills (static table):
# for the whole width on Hopper, for the whole width elsewhere, and for a slab, whose program has
# one more loop.
MAX_SUMS_HOPPER = 24576
MAX_SUMS = 12288
MAX_SUMS_OF_SLAB = 8192
MAX_SUMS_FP32 = 2048
# Shared memory for the assignment tile, reductions and layout conversions.
_SCRATCH_BYTES = 8 * 1024
# The compiler spills if sums and prefetched tokens take more registers per thread than this.
_MAX_HELD_REGISTERS = 144
# Loading the queries and storing the sums takes about as long as this many token tiles.
FIXED_TILES = 2
WARPS = 8
# Tokens and columns of a tile of the streaming backward, whose loop branches for every block.
_STREAM_TILE = (128, 64)
_MAX_STREAM_BLOCKS = 16


@dataclass(frozen=True)
class GroupingPlan:
    """How forward or backward is divided into programs and tiles.

    Attributes:
        block_tokens, block_width, num_blocks: a tile is `block_tokens` tokens in `num_blocks`
            blocks of `block_width` columns.
        block_groups: number of groups, padded.
        own_blocks, slabs: a program sums `own_blocks` of the blocks; `slabs` programs share a tile.
        splits, chunk: programs per sample and slab, and tokens per program.
        resident: forward keeps its blocks of the queries in shared memory for all its tiles.
        prefetch: forward loads this many blocks of the next tile into registers. Shared memory
            has room for two buffers of each other block.
        stages: `num_stages` of the token loads.
        branches: forward puts a tile's work in branches, for the compiler's sake; see its loop.
        stream: backward runs `stream.py`'s kernel; slabs are 1.
        upcast: convert bf16 operands to fp32, for the interpreter.
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
    branches: bool
    upcast: bool
    stream: bool = False


def unsupported(groups: int, width: int, dtype: torch.dtype, traits: DeviceTraits) -> str | None:
    """The reason why the fused kernels do not support these sizes, or None."""
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
    """Padded groups, width of a block, number of blocks."""
    # Blocks of 128 columns need the fewest registers.
    block_groups = power_of_two(groups, 16)
    wide = width % 128 == 0 and dtype.itemsize == 2 and block_groups <= 32
    block_width = 128 if wide else min(64, power_of_two(width))
    return block_groups, block_width, -(-width // block_width)


def _own_blocks(blocks: int, block_sums: int, dtype: torch.dtype, traits: DeviceTraits) -> int:
    """The number of blocks whose sums fit the registers of a program without spills."""
    whole = MAX_SUMS_HOPPER if traits.capability[0] == 9 else MAX_SUMS
    most = MAX_SUMS_OF_SLAB
    if dtype.itemsize == 4:
        whole = most = MAX_SUMS_FP32
    if blocks * block_sums <= whole:
        return blocks
    fitting = (n for n in range(1, blocks + 1) if blocks % n == 0 and n * block_sums <= most)
    return max(fitting, default=1)


def _splits(batch: int, tiles: int, slots: int) -> int:
    """Programs per sample that minimise waves x (tiles of the longest program + fixed cost)."""

    def time(splits: int) -> float:
        waves = -(-batch * splits // slots)
        return waves * (-(-tiles // splits) + FIXED_TILES)

    return min(range(1, min(tiles, 64) + 1), key=lambda splits: (time(splits), splits))


def _stream_plan(
    batch: int, length: int, groups: int, width: int, dtype: torch.dtype, traits: DeviceTraits
) -> GroupingPlan | None:
    """The plan of the streaming backward; None where it does not fit or there is no Hopper."""
    block_groups = power_of_two(groups, 16)
    block_tokens, block_width = _STREAM_TILE
    block_width = min(block_width, power_of_two(width))
    num_blocks = -(-width // block_width)
    fits = num_blocks <= _MAX_STREAM_BLOCKS and block_groups <= 32
    sums = block_groups * block_width * num_blocks
    if traits.capability[0] != 9 or dtype.itemsize != 2 or not fits or sums > MAX_SUMS_HOPPER:
        return None
    tiles = max(1, -(-length // block_tokens))
    splits = _splits(max(batch, 1), tiles, traits.sm_count)
    return GroupingPlan(
        block_tokens=block_tokens,
        block_width=block_width,
        num_blocks=num_blocks,
        block_groups=block_groups,
        own_blocks=num_blocks,
        slabs=1,
        splits=splits,
        chunk=-(-tiles // splits) * block_tokens,
        resident=False,
        prefetch=0,
        stages=3,
        branches=False,
        upcast=interpreted() and dtype == torch.bfloat16,
        stream=True,
    )


@functools.lru_cache(maxsize=1024)
def plan(
    batch: int,
    length: int,
    groups: int,
    width: int,
    dtype: torch.dtype,
    traits: DeviceTraits,
    backward: bool,
    streamable: bool = False,
) -> GroupingPlan:
    """The plan of forward or backward; cached to keep host time low.

    `streamable`: the call allows the streaming backward, see `stream.streamable`.
    """
    if streamable and backward:
        streamed = _stream_plan(batch, length, groups, width, dtype, traits)
        if streamed is not None:
            return streamed
    half = dtype.itemsize == 2
    block_groups, block_width, num_blocks = _tile(groups, width, dtype)
    own_blocks = _own_blocks(num_blocks, block_groups * block_width, dtype, traits)
    slabs = num_blocks // own_blocks
    # wgmma needs 64 rows. With three tf32 products for fp32, the registers suffice for 16 rows.
    block_tokens = 64 if half else 16
    if half and block_groups > 32 and traits.capability < (9, 0):
        block_tokens = 32
    query_bytes = block_groups * block_width * own_blocks * dtype.itemsize
    block_bytes = block_tokens * block_width * dtype.itemsize
    limit = traits.shared_memory_bytes - _SCRATCH_BYTES
    resident = half and not backward and block_bytes * own_blocks + query_bytes <= limit
    # With several slabs the loop over tiles contains a loop over blocks and cannot be pipelined.
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
        branches=half and slabs == 1 and stages == 2 and traits.capability[0] == 9,
        upcast=interpreted() and dtype == torch.bfloat16,
    )
