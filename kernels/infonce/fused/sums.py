"""Kernels of the one pass over the tiles: partial row and column sums."""

from __future__ import annotations

import triton
import triton.language as tl

from ...primitives import LOG2_E
from .tiles import OFFSET, add_parts, same_class, tile_dots


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
def sums_kernel(
    videos,
    texts,
    scale,
    video_ids,
    text_ids,
    weights,
    row_sums,
    column_sums,
    positives,
    first_row,
    stop_row,
    columns,
    first_tile,
    offset,
    strips,
    strip,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIPS: tl.constexpr,
    RAGGED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Partial sums of a column tile with `strip` row tiles, one power per pair, less positives.

    STRIPS says which strips this launch takes: all, those `beside` the diagonal, or the `diagonal`
    ones. Where positives are shared, they stay in the sums.
    """
    pid = tl.program_id(0)
    strip_rows = strip * BLOCK_M
    if STRIPS == "diagonal":
        column_tile = first_tile + pid // 2
    else:
        column_tile = first_tile + pid // strips
    first_column = column_tile * BLOCK_N
    first_positive = tl.maximum(first_column - offset, first_row) - first_row
    last_positive = tl.minimum(first_column + BLOCK_N - offset, stop_row) - 1 - first_row
    if STRIPS == "diagonal":
        number = tl.maximum(first_positive, 0) // strip_rows + pid % 2
        taken = (first_positive <= last_positive) & (number * strip_rows <= last_positive)
    else:
        number = pid % strips
        taken = number >= 0
        if STRIPS == "beside":
            above = last_positive < number * strip_rows
            below = first_positive >= (number + 1) * strip_rows
            taken = (first_positive > last_positive) | above | below
    strip_start = first_row + number * strip_rows
    tiles = tl.minimum(strip, tl.cdiv(stop_row - strip_start, BLOCK_M))
    tiles = tl.where(taken, tiles, 0)
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    base = -slope + OFFSET
    column = first_column + tl.arange(0, BLOCK_N)
    # Rows r and r + 8 of a tensor-core tile lie in one thread: this sum needs no shuffle.
    column_sum = tl.zeros((BLOCK_M // 16, 8, BLOCK_N), dtype=tl.float32)
    partial_at = column_tile.to(tl.int64) * (stop_row - first_row) - first_row
    for tile in tl.range(0, tiles):
        tile_start = strip_start + tile * BLOCK_M
        row = tile_start + tl.arange(0, BLOCK_M)
        dots = tile_dots(
            videos,
            texts,
            tile_start,
            first_column,
            stop_row,
            columns,
            depth,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            DESCRIBED,
            PRECISION,
            UPCAST,
        )
        if SHARE:
            same = same_class(video_ids, text_ids, row, column, stop_row, columns)
            shared = tl.sum(tl.where(same, dots, 0.0), 1)
            shared *= tl.load(weights + row, mask=row < stop_row, other=0.0)
            tl.store(positives + partial_at + row, shared, mask=row < stop_row)
        row_base = tl.where(row < stop_row, base, float("-inf"))
        power = tl.exp2(tl.fma(dots, slope, row_base[:, None]))
        if RAGGED:
            power = tl.where((column < columns)[None, :], power, 0.0)
        if EXCLUDE:
            same = same_class(video_ids, text_ids, row, column, stop_row, columns)
            power = tl.where(same, 0.0, power)
        if STRIPS != "beside" and not SHARE:
            on_diagonal = (row + offset)[:, None] == column[None, :]
            power = tl.where(on_diagonal, 0.0, power)
        tl.store(row_sums + partial_at + row, tl.sum(power, 1), mask=row < stop_row)
        column_sum += tl.sum(tl.reshape(power, (BLOCK_M // 16, 2, 8, BLOCK_N)), 1)
    total = tl.sum(tl.sum(column_sum, 0), 0)
    at = column_sums + number.to(tl.int64) * columns + column
    tl.store(at, total, mask=taken & (column < columns))


@triton.jit(do_not_specialize=["lines", "parts", "running"])
def fold_kernel(partials, sums, lines, parts, running, BLOCK: tl.constexpr):
    """Add `parts` partial sums of every line in order, to what is there where `running`."""
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = line < lines
    total = tl.load(sums + line, mask=inside & (running != 0), other=0.0)
    total = add_parts(total, partials, parts, line, lines, inside)
    tl.store(sums + line, total, mask=inside)
