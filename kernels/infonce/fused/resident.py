"""Kernels that keep one tile of full depth in shared memory while the other operand streams past.

The tensor cores multiply the next tile while the epilogue of this one is computed; beside the last
epilogue of a strip they multiply one tile more than needed. For half precision on compute
capability 9.0, calls without pair ids, and D of 65 to 128 and 193 to 256: an SM holds the tile and
two more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...device import traits
from ...launch import power_of_two
from ...primitives import LOG2_E, dot
from .gradient import exact_gradient, tile_upstream
from .layout import InfonceTile
from .tiles import OFFSET, diagonal_tiles

RESIDENT_DEPTHS = (128, 256)
STREAMED_STEP = 64


def resident_tile(videos: Tensor, video_ids: Tensor | None) -> InfonceTile | None:
    """The tile of these kernels, or None where they do not take the call."""
    # The depth of a block is a power of two; columns beyond the matrix are read as 0.
    depth = power_of_two(videos.shape[1])
    half = videos.dtype.itemsize == 2
    # Other widths take fewer steps of 64 with streamed operands; with D <= 64, two programs per SM
    # overlap better.
    fits = depth in RESIDENT_DEPTHS and videos.shape[1] > depth - STREAMED_STEP
    if not (half and fits and video_ids is None and traits(videos.device).capability[0] == 9):
        return None
    return InfonceTile(128, 128, depth, 8, 2, True)


@triton.jit(
    do_not_specialize=[
        "first_row",
        "stop_row",
        "columns",
        "first_tile",
        "offset",
        "strips",
        "strip",
    ]
)
def resident_sums_kernel(
    videos,
    texts,
    scale,
    row_sums,
    column_sums,
    first_row,
    stop_row,
    columns,
    first_tile,
    offset,
    strips,
    strip,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`sums_kernel` with the tile of texts resident; counts the tiles beside the diagonal only."""
    tl.static_assert(videos.block_shape[1] >= DEPTH, "a tile has the full depth")
    pid = tl.program_id(0)
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    base = -slope + OFFSET
    column_tile = first_tile + pid // strips
    number = pid % strips
    first_column = column_tile * BLOCK_N
    lowest, highest = diagonal_tiles(first_column, offset, first_row, stop_row, BLOCK_M, BLOCK_N)
    first = number * strip
    stop = tl.minimum(first + strip, tl.cdiv(stop_row - first_row, BLOCK_M))
    partial_at = column_tile.to(tl.int64) * (stop_row - first_row) - first_row
    # One thread holds rows r and r + 8 of a tensor-core tile, so their sum needs no shuffle.
    column_sum = tl.zeros((BLOCK_M // 16, 8, BLOCK_N), dtype=tl.float32)
    text = texts.load([first_column, 0]).T
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    product = dots
    end = stop + 1
    for tile in tl.range(first, end):
        dots = dot(videos.load([first_row + tile * BLOCK_M, 0]), text, dots, UPCAST, "ieee")
        # Both branches are always taken. Triton lets a product run on until a branch uses it; what
        # precedes that branch stays behind the start of the product in a branch of its own.
        if tile < end:
            if tile > first:
                row_tile = tile - 1
                row = first_row + row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
                beside = (row_tile < lowest) | (row_tile > highest)
                counted = (row < stop_row) & beside
                row_base = tl.where(counted, base, float("-inf"))
                # e_ij = 2^(k a_ij - k + OFFSET) = 2^OFFSET exp(s_ij - alpha), k = alpha log2 e
                power = tl.exp2(tl.fma(product, slope / 2, row_base[:, None]))
                tl.store(row_sums + partial_at + row, tl.sum(power, 1), mask=counted)
                column_sum += tl.sum(tl.reshape(power, (BLOCK_M // 16, 2, 8, BLOCK_N)), 1)
            if end > tile:
                # Exact; Triton 3.6.0 serialises the products where it is a plain copy.
                product = dots * 2
            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = tl.sum(tl.sum(column_sum, 0), 0)
    column = first_column + tl.arange(0, BLOCK_N)
    tl.store(column_sums + number.to(tl.int64) * columns + column, total, mask=column < columns)


@triton.jit(
    do_not_specialize=[
        "first_row",
        "stop_row",
        "rows",
        "columns",
        "offset",
        "row_blocks",
        "row_tiles",
        "strip",
    ]
)
def resident_gradient_kernel(
    videos,
    texts,
    scale,
    logs,
    factors,
    sound,
    line_upstream,
    out,
    first_row,
    rows,
    columns,
    offset,
    row_blocks,
    row_tiles,
    strip,
    lift,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LINES: tl.constexpr,
    LOSS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`dots_gradient_kernel` for one row tile, which is resident, and a strip of column tiles."""
    tl.static_assert(videos.block_shape[1] >= DEPTH, "a tile has the full depth")
    FLAGS: tl.constexpr = BLOCK_N // LINES
    row_start = tl.program_id(0) % row_tiles * BLOCK_M
    first = tl.program_id(0) // row_tiles * strip
    last = tl.minimum(first + strip, tl.cdiv(columns, BLOCK_N)) - 1
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    base = -slope + OFFSET
    first_column_line = row_blocks * LINES
    row = first_row + row_start + tl.arange(0, BLOCK_M)
    row_factor = tl.load(factors + row) * lift
    row_flags = sound + (first_row + row_start) // LINES + tl.arange(0, BLOCK_M // LINES)
    # One line out of range makes the whole strip take two powers.
    is_sound = tl.min(tl.load(row_flags), 0)
    column_flags = sound + row_blocks
    for block in tl.range(first * FLAGS, (last + 1) * FLAGS, BLOCK_M):
        at = block + tl.arange(0, BLOCK_M)
        flags = tl.load(column_flags + at, mask=at < (last + 1) * FLAGS, other=1)
        is_sound = tl.minimum(is_sound, tl.min(flags, 0))
    video = videos.load([first_row + row_start, 0])
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    product = dots
    left_factor = tl.zeros((BLOCK_N // 2,), dtype=tl.float32)
    right_factor = left_factor
    end = last + 2
    # Without hoisting: it would spill.
    for tile in tl.range(first, end, disable_licm=True):
        dots = dot(video, texts.load([tile * BLOCK_N, 0]).T, dots, UPCAST, "ieee")
        # Both branches are always taken, as above.
        if tile < end:
            # For the next step, so that no step waits for its loads.
            known = tl.minimum(tile, last) * BLOCK_N
            at = factors + first_column_line + known + tl.arange(0, BLOCK_N // 2)
            next_left_factor = tl.load(at)
            next_right_factor = tl.load(at + BLOCK_N // 2)
            if tile > first:
                column_start = (tile - 1) * BLOCK_N
                # In halves: fewer registers, and a smaller buffer for the store.
                halves = tl.permute(
                    tl.reshape(product, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)
                ).split()
                for half in tl.static_range(2):
                    half_start = column_start + half * (BLOCK_N // 2)
                    if is_sound != 0:
                        # e_ij (g^r_i / exp(r_i) + g^c_j / exp(c_j)): the same with one power
                        column_factor = left_factor if half == 0 else right_factor
                        factor = row_factor[:, None] + column_factor[None, :] * lift
                        gradient = tl.exp2(tl.fma(halves[half], slope / 2, base)) * factor
                    else:
                        column = half_start + tl.arange(0, BLOCK_N // 2)
                        row_upstream = tile_upstream(
                            line_upstream, row, offset, rows, columns, 0, LOSS
                        )
                        column_upstream = tile_upstream(
                            line_upstream, column, -offset, columns, rows, first_column_line, LOSS
                        )
                        gradient = lift * exact_gradient(
                            tl.fma(halves[half], slope / 2, -slope),
                            tl.load(logs + row)[:, None],
                            tl.load(logs + first_column_line + column)[None, :],
                            row_upstream[:, None],
                            column_upstream[None, :],
                        )
                    out.store([row_start, half_start], gradient.to(out.dtype))
            left_factor, right_factor = next_left_factor, next_right_factor
            if end > tile:
                # Exact; Triton 3.6.0 serialises the products where it is a plain copy.
                product = dots * 2
            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
