"""Forward: row and column sums in one pass over the tiles, then logarithms and the loss."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...device import traits
from ...launch import launch
from ..pairs import diagonal_range
from .layout import (
    LINES,
    forward_chunk_rows,
    pointer_depth,
    product_options,
    strip_tiles,
    tile_of,
    tile_operands,
)
from .tiles import (
    LARGEST_SUM,
    LOG2_E,
    OFFSET,
    ONE_OVER_OFFSET,
    SMALLEST_SUM,
    paired_dots,
    same_class,
    tile_dots,
)

FOLD_LINES = 256


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
    RAGGED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Partial row and column sums of one column tile with `strip` row tiles, one power per pair."""
    pid = tl.program_id(0)
    column_tile = first_tile + pid // strips
    strip_start = first_row + (pid % strips) * strip * BLOCK_M
    tiles = tl.minimum(strip, tl.cdiv(stop_row - strip_start, BLOCK_M))
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    base = -slope + OFFSET
    first_column = column_tile * BLOCK_N
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
            diagonal = (row + offset)[:, None] == column[None, :]
            power = tl.where(same & (diagonal == 0), 0.0, power)
        tl.store(row_sums + partial_at + row, tl.sum(power, 1), mask=row < stop_row)
        column_sum += tl.sum(tl.reshape(power, (BLOCK_M // 16, 2, 8, BLOCK_N)), 1)
    total = tl.sum(tl.sum(column_sum, 0), 0)
    at = column_sums + (pid % strips).to(tl.int64) * columns + column
    tl.store(at, total, mask=column < columns)


@triton.jit(do_not_specialize=["lines", "parts", "running"])
def fold_kernel(partials, sums, lines, parts, running, BLOCK: tl.constexpr):
    """Add `parts` partial sums of every line in order, to what is there where `running`."""
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = line < lines
    total = tl.load(sums + line, mask=inside & (running != 0), other=0.0)
    for part in tl.range(0, parts):
        at = partials + tl.cast(part, tl.int64) * lines + line
        total += tl.load(at, mask=inside, other=0.0)
    tl.store(sums + line, total, mask=inside)


@triton.jit
def logs_anew(
    own,
    other,
    own_ids,
    other_ids,
    first_line,
    slope,
    shift,
    count,
    other_count,
    depth,
    LINES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXCLUDE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Binary logarithms of the lines' sums relative to 2^slope, each under its own maximum."""
    line = first_line + tl.arange(0, LINES)
    maximum = tl.full((LINES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((LINES,), dtype=tl.float32)
    for start in tl.range(0, other_count, LINES):
        index = start + tl.arange(0, LINES)
        dots = tile_dots(
            own,
            other,
            first_line,
            start,
            count,
            other_count,
            depth,
            LINES,
            LINES,
            BLOCK_K,
            False,
            PRECISION,
            UPCAST,
        )
        logits = tl.where((index < other_count)[None, :], dots * slope, float("-inf"))
        if EXCLUDE:
            same = same_class(own_ids, other_ids, line, index, count, other_count)
            diagonal = (line + shift)[:, None] == index[None, :]
            logits = tl.where(same & (diagonal == 0), float("-inf"), logits)
        larger = tl.maximum(maximum, tl.max(logits, 1))
        reference = tl.where(larger == float("-inf"), 0.0, larger)
        total *= tl.exp2(maximum - reference)
        total += tl.sum(tl.exp2(logits - reference[:, None]), 1)
        maximum = larger
    # A line without any pair keeps -inf.
    return maximum + tl.log2(tl.where(total > 0.0, total, 1.0)) - slope


@triton.jit(
    do_not_specialize=[
        "rows",
        "columns",
        "offset",
        "row_parts",
        "column_parts",
        "positive_parts",
        "row_blocks",
    ]
)
def finish_kernel(
    videos,
    texts,
    scale,
    video_ids,
    text_ids,
    row_sums,
    column_sums,
    positives,
    logs,
    factors,
    exponents,
    sound,
    terms,
    rows,
    columns,
    offset,
    row_parts,
    column_parts,
    positive_parts,
    row_blocks,
    depth,
    LINES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    LOSS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Logarithms of a block of row or column sums; sums out of range are computed anew."""
    pid = tl.program_id(0)
    is_row = pid < row_blocks
    own_ids, other_ids = video_ids, text_ids
    if is_row:
        own, other, sums = videos, texts, row_sums
        block, parts, count, other_count, shift = pid, row_parts, rows, columns, offset
    else:
        own, other, sums = texts, videos, column_sums
        block, parts, count, other_count = pid - row_blocks, column_parts, columns, rows
        shift = -offset
        if EXCLUDE:
            own_ids, other_ids = text_ids, video_ids
    first_line = block * LINES
    line = first_line + tl.arange(0, LINES)
    inside = line < count
    total = tl.zeros((LINES,), dtype=tl.float32)
    for part in tl.range(0, parts):
        at = sums + tl.cast(part, tl.int64) * count + line
        total += tl.load(at, mask=inside, other=0.0)
    partner = line + shift
    paired = inside & (partner >= 0) & (partner < other_count)
    if SHARE:
        row = tl.where(is_row, line, partner)
        positive = tl.zeros((LINES,), dtype=tl.float32)
        for part in tl.range(0, positive_parts):
            at = positives + tl.cast(part, tl.int64) * rows + row
            positive += tl.load(at, mask=inside & (row >= 0) & (row < rows), other=0.0)
    else:
        positive = paired_dots(
            own,
            other,
            first_line,
            shift,
            count,
            other_count,
            depth,
            LINES,
            BLOCK_K,
            PRECISION,
            UPCAST,
        )
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    # The same expression as in the sums, so that its rounding cancels between sum and positive.
    exponent = tl.fma(positive, slope, -slope + OFFSET)
    in_range = (total > SMALLEST_SUM) & (total < LARGEST_SUM)
    usable = tl.where(in_range, total, 1.0)
    # Next to a sum of 2^OFFSET, a confident pair, the logarithm is small and keeps its digits.
    large = usable > 1.0
    log = tl.log2(tl.where(large, usable * ONE_OVER_OFFSET, usable))
    log = tl.where(large, log, log - OFFSET)
    broken = inside & (in_range == 0)
    any_broken = tl.max(broken.to(tl.int32), 0)
    if any_broken > 0:
        anew = logs_anew(
            own,
            other,
            own_ids,
            other_ids,
            first_line,
            slope,
            shift,
            count,
            other_count,
            depth,
            LINES,
            BLOCK_K,
            EXCLUDE,
            PRECISION,
            UPCAST,
        )
        log = tl.where(broken, anew, log)
    # Whole blocks are written: backward reads tiles without a mask.
    at = pid * LINES + tl.arange(0, LINES)
    tl.store(logs + at, tl.where(inside, log, 0.0))
    in_loss = inside
    if LOSS:
        in_loss = paired
    factor = tl.where(in_range & in_loss, tl.exp2(-tl.where(in_range, log, 0.0) - OFFSET), 0.0)
    tl.store(factors + at, factor)
    tl.store(sound + pid, (any_broken == 0).to(tl.int32))
    if is_row:
        tl.store(exponents + line, exponent - OFFSET, mask=inside)
    if LOSS:
        term = log - (exponent - OFFSET)
        # Near zero the difference of logarithms has no digits left; the quotient has.
        near = in_range & (tl.abs(term) < 8.0)
        quotient = usable * tl.exp2(tl.where(near, -exponent, 0.0))
        term = tl.where(near, tl.log2(tl.where(near, quotient, 1.0)), term)
        # Triton 3.7.1 cannot sum a slice of a tensor-memory layout (sm_100); reordering gives it another.
        counted = tl.reshape(tl.where(paired, term, 0.0), (LINES,), can_reorder=True)
        tl.store(terms + pid, tl.sum(counted, 0))


@triton.jit(do_not_specialize=["number", "factor"])
def total_kernel(parts, result, number, factor, BLOCK: tl.constexpr):
    """factor x the sum of `number` values, in a fixed order."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in tl.range(0, number, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(parts + index, mask=index < number, other=0.0)
    tl.store(result, tl.sum(total, 0) * factor)


class Block(NamedTuple):
    """The tensors of one call as the kernels take them; ids are int32 ranks."""

    videos: Tensor
    texts: Tensor
    scale: Tensor
    video_ids: Tensor | None
    text_ids: Tensor | None
    weights: Tensor | None
    offset: int

    def pair_options(self) -> dict[str, bool]:
        """EXCLUDE and SHARE: share weights are there exactly in share mode."""
        with_ids = self.video_ids is not None
        return {
            "EXCLUDE": with_ids and self.weights is None,
            "SHARE": self.weights is not None,
        }


class Logs(NamedTuple):
    """Binary logarithms relative to 2^(scale log2 e), for backward in whole blocks of LINES.

    Attributes:
        lines: rows, padded to whole tiles, then columns likewise.
        factors: 2^(-lines - OFFSET); 0 for padding and, with a loss, for lines without a pair.
        exponents: [m] of the positives.
        sound: int32, one per block of lines: 1 where one power serves rows and columns.
    """

    lines: Tensor
    factors: Tensor
    exponents: Tensor
    sound: Tensor


def line_blocks(lines: int) -> int:
    """Blocks of LINES that cover whole tiles of 128."""
    return 2 * -(-lines // (2 * LINES))


def forward(block: Block, *, with_loss: bool) -> tuple[Tensor, Logs]:
    """Loss (0-dim; undefined without `with_loss`) and the logarithms of all sums."""
    videos, texts = block.videos, block.texts
    rows, columns = videos.shape[0], texts.shape[0]
    tile, pairs = tile_of(videos), block.pair_options()
    column_tiles = -(-columns // tile.columns)
    chunk = forward_chunk_rows(rows, columns, tile)
    strip = strip_tiles(-(-chunk // tile.rows), column_tiles, traits(videos.device))
    strips = -(-chunk // (strip * tile.rows))
    single, share = chunk == rows, pairs["SHARE"]
    row_parts = _empty(videos, column_tiles, chunk)
    column_parts = _empty(videos, strips, columns)
    positive_parts = _empty(videos, column_tiles, chunk) if share else None
    row_sums = row_parts if single else _empty(videos, rows)
    column_sums = column_parts if single else _empty(videos, columns)
    positives = positive_parts if single or not share else _empty(videos, rows)
    described = tile_operands(videos, texts, tile)
    full_tiles = columns // tile.columns
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        strips_here = -(-(stop - start) // (strip * tile.rows))
        # The ragged last column tile has its own launch: masks cost the second block per SM.
        for first_tile, tiles in ((0, full_tiles), (full_tiles, column_tiles - full_tiles)):
            if tiles == 0:
                continue
            launch(
                sums_kernel,
                (strips_here * tiles,),
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
                videos.shape[1],
                RAGGED=first_tile > 0 or full_tiles == 0,
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
