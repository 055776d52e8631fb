"""Forward: partial sums in one pass over the tiles of each chunk of rows, logarithms, loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backend import gluon_wanted, say_once
from ...device import traits
from ...launch import launch
from ...primitives import LOG2_E
from ..pairs import diagonal_range
from .finish import finish_kernel, total_kernel
from .layout import (
    LINES,
    InfonceTile,
    forward_chunk_rows,
    pointer_depth,
    product_options,
    strip_row_tiles,
    tile_of,
    tile_operands,
)
from .resident import resident_sums_kernel, resident_tile
from .tiles import OFFSET, add_parts, diagonal_tiles, same_class, tile_dots

FOLD_LINES = 256
FEW_BLOCKS_PER_SM = 4


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
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
    RAGGED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Partial sums of a column tile with `strip` row tiles, without the positives.

    TILES selects the tiles of this launch: `all`, those `beside` the diagonal, or those on the
    `diagonal`. The latter has one program per column tile, which adds to the column sums that the
    launch before it stored. With SHARE, the sums include the positives.
    """
    pid = tl.program_id(0)
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    base = -slope + OFFSET
    if TILES == "diagonal":
        column_tile = first_tile + pid
    else:
        column_tile = first_tile + pid // strips
    first_column = column_tile * BLOCK_N
    lowest, highest = diagonal_tiles(first_column, offset, first_row, stop_row, BLOCK_M, BLOCK_N)
    if TILES == "diagonal":
        number = lowest // strip
        first = lowest
        last = highest
    else:
        number = pid % strips
        first = number * strip
        last = tl.minimum(first + strip, tl.cdiv(stop_row - first_row, BLOCK_M)) - 1
    column = first_column + tl.arange(0, BLOCK_N)
    partial_at = column_tile.to(tl.int64) * (stop_row - first_row) - first_row
    # One thread holds rows r and r + 8 of a tensor-core tile, so their sum needs no shuffle.
    column_sum = tl.zeros((BLOCK_M // 16, 8, BLOCK_N), dtype=tl.float32)
    # One flat loop over tiles and depth: the copies of the next tile are under way while the sums
    # of this one are taken.
    for row_tile in tl.range(first, last + 1, flatten=FLATTEN):
        tile_start = first_row + row_tile * BLOCK_M
        dots = tile_dots(
            videos,
            texts,
            tile_start,
            first_column,
            stop_row,
            columns,
            DEPTH,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            DESCRIBED,
            PRECISION,
            UPCAST,
        )
        row = tile_start + tl.arange(0, BLOCK_M)
        counted = row < stop_row
        if TILES == "beside":
            counted = counted & ((row_tile < lowest) | (row_tile > highest))
        if SHARE:
            same = same_class(video_ids, text_ids, row, column, stop_row, columns)
            shared = tl.sum(tl.where(same, dots, 0.0), 1)
            # p_i / alpha: the mean of a_ij over the texts j with the id of i
            shared *= tl.load(weights + row, mask=counted, other=0.0)
            tl.store(positives + partial_at + row, shared, mask=counted)
        row_base = tl.where(counted, base, float("-inf"))
        # e_ij = 2^(k a_ij - k + OFFSET) = 2^OFFSET exp(s_ij - alpha), k = alpha log2 e
        power = tl.exp2(tl.fma(dots, slope, row_base[:, None]))
        if RAGGED:
            power = tl.where((column < columns)[None, :], power, 0.0)
        if EXCLUDE:
            same = same_class(video_ids, text_ids, row, column, stop_row, columns)
            power = tl.where(same, 0.0, power)
        if TILES != "beside" and not SHARE:
            on_diagonal = (row + offset)[:, None] == column[None, :]
            power = tl.where(on_diagonal, 0.0, power)
        # exp(r_i) = sum_j exp(s_ij): the part of this tile of columns
        tl.store(row_sums + partial_at + row, tl.sum(power, 1), mask=counted)
        # exp(c_j) = sum_i exp(s_ij): the part of this tile of rows
        column_sum += tl.sum(tl.reshape(power, (BLOCK_M // 16, 2, 8, BLOCK_N)), 1)
    total = tl.sum(tl.sum(column_sum, 0), 0)
    at = column_sums + number.to(tl.int64) * columns + column
    if TILES == "diagonal":
        total += tl.load(at, mask=column < columns, other=0.0)
    tl.store(at, total, mask=column < columns)


@triton.jit(do_not_specialize=["lines", "parts", "running"])
def fold_kernel(partials, sums, lines, parts, running, BLOCK: tl.constexpr):
    """Add `parts` partial sums of every line in order, to the previous sums if `running`."""
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = line < lines
    total = tl.load(sums + line, mask=inside & (running != 0), other=0.0)
    total = add_parts(total, partials, parts, line, lines, inside)
    tl.store(sums + line, total, mask=inside)


class CallTensors(NamedTuple):
    """The inputs of one call in the form that the kernels take; ids are int32 ranks."""

    videos: Tensor
    texts: Tensor
    scale: Tensor
    video_ids: Tensor | None
    text_ids: Tensor | None
    weights: Tensor | None
    offset: int

    def pair_options(self) -> dict[str, bool]:
        """EXCLUDE and SHARE of the kernels; weights are given in share mode only."""
        with_ids = self.video_ids is not None
        return {
            "EXCLUDE": with_ids and self.weights is None,
            "SHARE": self.weights is not None,
        }


def _sums_launches(
    block: CallTensors, tile: InfonceTile, start: int, stop: int, together: bool
) -> Iterator[tuple[str, int, int, bool]]:
    """(tiles, first column tile, column tiles, ragged) of the launches that sum one chunk.

    With masks, a kernel needs more registers and only one block fits an SM. In large problems, the
    tiles that need masks (the ragged last column tile and the tiles on the diagonal) therefore
    have separate launches. The diagonal's is last, because it adds to the sums of the others.
    """
    columns = block.texts.shape[0]
    full = columns // tile.columns
    ragged = columns % tile.columns != 0
    if together:
        yield "all", 0, full + ragged, ragged
        return
    if full:
        yield "beside", 0, full, False
    if ragged:
        yield "beside", full, 1, True
    # The kernel treats the padding of the last tile as columns when it selects tiles.
    first = max(0, (start + block.offset) // tile.columns)
    last = min(full + ragged, -(-(stop + block.offset) // tile.columns))
    if first < last:
        yield "diagonal", first, last - first, ragged


def gluon_obstacle(block: CallTensors) -> str | None:
    """The reason why `gluon_sums` does not take this call, or None."""
    dim = block.videos.shape[1]
    if block.videos.dtype == torch.float32:
        return "fp32 products take three steps of tf32"
    if not 64 <= dim <= 512:
        return f"the tile of texts is resident for D from 64 to 512, got {dim}"
    if block.video_ids is not None:
        return "pair ids are not supported"
    return None


class Logs(NamedTuple):
    """log2 of the sums relative to 2^(scale log2 e), padded to whole blocks of LINES for backward.

    Attributes:
        lines: rows, padded to whole tiles, then columns, padded likewise.
        factors: 2^(-lines - OFFSET); 0 for padding and, with a loss, for lines without a pair.
        others: share of the negatives in the sum of a line with a pair, else 0; unused with SHARE.
        exponents: [m] of the positives.
        sound: int32, one per block of lines: 1 if all sums of the block are in range, so that one
            power serves rows and columns.
    """

    lines: Tensor
    factors: Tensor
    others: Tensor
    exponents: Tensor
    sound: Tensor


def line_blocks(lines: int) -> int:
    """Blocks of LINES that cover whole tiles of 128."""
    return 2 * -(-lines // (2 * LINES))


def forward(block: CallTensors, *, with_loss: bool) -> tuple[Tensor, Logs]:
    """Loss (0-dim; undefined without `with_loss`) and the logarithms of all sums."""
    videos, texts = block.videos, block.texts
    rows, columns = videos.shape[0], texts.shape[0]
    tile, pairs = tile_of(videos), block.pair_options()
    column_tiles = -(-columns // tile.columns)
    chunk = forward_chunk_rows(rows, columns, tile)
    resident = resident_tile(videos, block.video_ids)
    few = FEW_BLOCKS_PER_SM * traits(videos.device).sm_count
    row_tiles = -(-chunk // tile.rows)
    long = resident is not None and row_tiles * column_tiles > few
    strip = strip_row_tiles(row_tiles, column_tiles, traits(videos.device), long)
    strips = -(-chunk // (strip * tile.rows))
    single, share = chunk == rows, pairs["SHARE"]
    row_parts = _empty(videos, column_tiles, chunk)
    column_parts = _empty(videos, strips, columns)
    positive_parts = _empty(videos, column_tiles, chunk) if share else None
    row_sums = row_parts if single else _empty(videos, rows)
    column_sums = column_parts if single else _empty(videos, columns)
    positives = positive_parts if single or not share else _empty(videos, rows)
    described = tile_operands(videos, texts, tile)
    gluon = gluon_wanted(videos.device)
    if gluon and (reason := gluon_obstacle(block)) is not None:
        say_once("infonce", "plain kernels instead of Gluon", reason)
        gluon = False
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        strips_here = -(-(stop - start) // (strip * tile.rows))
        together = share or -(-(stop - start) // tile.rows) * column_tiles <= few
        for part, first_tile, tiles, ragged in _sums_launches(block, tile, start, stop, together):
            if part == "beside" and gluon and not ragged:
                from .gluon_sums import launch_sums

                launch_sums(
                    videos,
                    texts,
                    block.scale,
                    (row_parts, column_parts),
                    tile,
                    (start, stop),
                    first_tile,
                    tiles,
                    block.offset,
                    strips_here,
                    strip,
                )
                continue
            if part == "beside" and resident and not ragged:
                launch(
                    resident_sums_kernel,
                    (tiles * strips_here,),
                    *tile_operands(videos, texts, resident),
                    block.scale,
                    row_parts,
                    column_parts,
                    start,
                    stop,
                    columns,
                    first_tile,
                    block.offset,
                    strips_here,
                    strip,
                    **resident.resident_options(videos),
                )
                continue
            launch(
                sums_kernel,
                (tiles if part == "diagonal" else tiles * strips_here,),
                *described,
                block.scale,
                block.video_ids,
                block.text_ids,
                block.weights,
                row_parts,
                column_parts,
                positive_parts,
                start,
                stop,
                columns,
                first_tile,
                block.offset,
                strips_here,
                strip,
                DEPTH=videos.shape[1],
                TILES=part,
                RAGGED=ragged,
                FLATTEN=tile.blocks > 0 and part == "beside",
                **tile.options(),
                **pairs,
                **product_options(videos),
            )
        if not single:
            _fold(row_parts, row_sums[start:stop], column_tiles, running=False)
            _fold(column_parts, column_sums, strips_here, running=start > 0)
            if positive_parts is not None and positives is not None:
                _fold(positive_parts, positives[start:stop], column_tiles, running=False)
    row_blocks, column_blocks = line_blocks(rows), line_blocks(columns)
    blocks = row_blocks + column_blocks
    logs = Logs(
        _empty(videos, blocks * LINES),
        _empty(videos, blocks * LINES),
        _empty(videos, blocks * LINES),
        _empty(videos, rows),
        torch.empty((blocks,), dtype=torch.int32, device=videos.device),
    )
    terms = _empty(videos, blocks) if with_loss else None
    launch(
        finish_kernel,
        (blocks,),
        videos,
        texts,
        block.scale,
        block.video_ids,
        block.text_ids,
        row_sums,
        column_sums,
        positives,
        *logs,
        terms,
        rows,
        columns,
        block.offset,
        column_tiles if single else 1,
        strips if single else 1,
        column_tiles if single else 1,
        row_blocks,
        videos.shape[1],
        LINES=LINES,
        BLOCK_K=pointer_depth(videos),
        LOSS=with_loss,
        num_warps=4,
        num_stages=2,
        **pairs,
        **product_options(videos),
    )
    loss = _empty(videos)
    if with_loss:
        start, stop = diagonal_range(rows, columns, block.offset)
        factor = math.log(2) / (2 * (stop - start))
        launch(total_kernel, (1,), terms, loss, blocks, factor, BLOCK=1024)
    return loss, logs


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _fold(partials: Tensor, sums: Tensor, parts: int, *, running: bool) -> None:
    lines = sums.shape[0]
    grid = (-(-lines // FOLD_LINES),)
    launch(fold_kernel, grid, partials, sums, lines, parts, int(running), BLOCK=FOLD_LINES)
