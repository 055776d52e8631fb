"""Host side of forward: sums by chunks of rows, then logarithms and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...device import traits
from ...launch import launch
from ..pairs import diagonal_range
from .finish import finish_kernel, total_kernel
from .layout import (
    LINES,
    Tile,
    forward_chunk_rows,
    pointer_depth,
    product_options,
    strip_tiles,
    tile_of,
    tile_operands,
)
from .sums import fold_kernel, sums_kernel

FOLD_LINES = 256
FEW_BLOCKS_PER_SM = 4


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


def _sums_launches(
    block: Block, tile: Tile, start: int, stop: int, strips: int, together: bool
) -> Iterator[tuple[str, int, int, bool]]:
    """(strips, first column tile, programs, ragged) of the launches that make a chunk's sums.

    Masks cost the second block per SM. So in large problems what needs them, the ragged last
    column tile and the strips on the diagonal, has launches of its own.
    """
    columns = block.texts.shape[0]
    full = columns // tile.columns
    ragged = columns % tile.columns != 0
    if together:
        yield "all", 0, strips * (full + ragged), ragged
        return
    if full:
        yield "beside", 0, strips * full, False
    if ragged:
        yield "beside", full, strips, True
    # "beside" counts the padding of the last tile as columns when it leaves a strip out.
    if start + block.offset < tile.columns * (full + ragged) and stop + block.offset > 0:
        yield "diagonal", 0, 2 * (full + ragged), ragged


class Logs(NamedTuple):
    """Binary logarithms relative to 2^(scale log2 e), for backward in whole blocks of LINES.

    Attributes:
        lines: rows, padded to whole tiles, then columns likewise.
        factors: 2^(-lines - OFFSET); 0 for padding and, with a loss, for lines without a pair.
        others: the negatives' share of the sum of a line with a pair, else 0; not with SHARE.
        exponents: [m] of the positives.
        sound: int32, one per block of lines: 1 where one power serves rows and columns.
    """

    lines: Tensor
    factors: Tensor
    others: Tensor
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
    few = FEW_BLOCKS_PER_SM * traits(videos.device).sm_count
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        strips_here = -(-(stop - start) // (strip * tile.rows))
        together = share or strips_here * column_tiles <= few
        for part, first_tile, programs, ragged in _sums_launches(
            block, tile, start, stop, strips_here, together
        ):
            launch(
                sums_kernel,
                (programs,),
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
                STRIPS=part,
                RAGGED=ragged,
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
