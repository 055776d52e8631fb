"""Backward: the gradient of the dot products by chunks of rows, then two large products each."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launch
from ...products import accumulate_product
from .forward import Block, Logs, line_blocks, total_kernel
from .layout import (
    LINES,
    Tile,
    backward_chunk_rows,
    padded_columns,
    pointer_depth,
    product_options,
    tile_of,
    tile_operands,
    tile_target,
)
from .tiles import LOG2_E, OFFSET, paired_dots, same_class, tile_dots

# A power of two that lifts the gradient into float16's normal range: |dots gradient| is at most
# 3 x the largest upstream gradient, and 3 x 2^14 < 65,504.
LIFT = 2.0**14
TILE_GROUP = 8
# Divides every chunk, so that the partial sums of all chunks lie behind one another.
FINISH_ROWS = 16


class Upstream(NamedTuple):
    """Gradients at the logs in natural units; None for all three: those of the loss."""

    rows: Tensor
    columns: Tensor
    positives: Tensor


class Gradients(NamedTuple):
    """Gradients by the inputs; empty tensors for those that were not wanted."""

    videos: Tensor
    texts: Tensor
    scale: Tensor


@triton.jit
def upstream_of(
    upstream, line, shift, count, other_count, first, PER_PAIR: tl.constexpr, LOSS: tl.constexpr
):
    """Gradients at the logs of lines; those of the loss are one number for all of its pairs."""
    inside = (line >= 0) & (line < count)
    if LOSS:
        partner = line + shift
        gradient = tl.where((partner >= 0) & (partner < other_count), PER_PAIR, 0.0)
    else:
        gradient = tl.load(upstream + first + line, mask=inside, other=0.0)
    return tl.where(inside, gradient, 0.0)


@triton.jit
def exact_gradient(dots, slope, row_log, column_log, row_upstream, column_upstream):
    """Gradient of the log-sums at dot products, one power for each direction."""
    # A line without any pair has no gradient: 2^(x - infinity) is 0.
    row_log = tl.where(row_log == float("-inf"), float("inf"), row_log)
    column_log = tl.where(column_log == float("-inf"), float("inf"), column_log)
    exponent = tl.fma(dots, slope, -slope)
    gradient = tl.exp2(exponent - row_log) * row_upstream
    return gradient + tl.exp2(exponent - column_log) * column_upstream


@triton.jit
def with_classes(
    gradient,
    video_ids,
    text_ids,
    weights,
    positive_upstream,
    row,
    column,
    stop_row,
    rows,
    columns,
    offset,
    lift,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    LOSS: tl.constexpr,
):
    """Take excluded pairs out, put shared positives in."""
    if EXCLUDE or SHARE:
        same = same_class(video_ids, text_ids, row, column, stop_row, columns)
        if EXCLUDE:
            diagonal = (row + offset)[:, None] == column[None, :]
            gradient = tl.where(same & (diagonal == 0), 0.0, gradient)
        else:
            positive = upstream_of(positive_upstream, row, offset, rows, columns, 0, -2.0, LOSS)
            positive *= tl.load(weights + row, mask=row < stop_row, other=0.0) * lift
            gradient += tl.where(same, positive[:, None], 0.0)
    return gradient


@triton.jit(do_not_specialize=["first_row", "stop_row", "rows", "columns", "offset", "row_blocks"])
def dots_gradient_kernel(
    videos,
    texts,
    video_rows,
    text_rows,
    scale,
    logs,
    factors,
    sound,
    video_ids,
    text_ids,
    weights,
    line_upstream,
    positive_upstream,
    out,
    out_rows,
    first_row,
    stop_row,
    rows,
    columns,
    offset,
    row_blocks,
    stride,
    depth,
    lift,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POINTER_K: tl.constexpr,
    LINES: tl.constexpr,
    TILE_GROUP: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    LOSS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`lift` x the gradient of one tile of dot products, up to the factor taken out of upstream.

    Without the positives, unless they are shared: `diagonal_kernel` puts those in.
    """
    pid = tl.program_id(0)
    row_tiles = tl.cdiv(stop_row - first_row, BLOCK_M)
    per_group = TILE_GROUP * tl.cdiv(columns, BLOCK_N)
    group_start = (pid // per_group) * TILE_GROUP
    height = tl.minimum(row_tiles - group_start, TILE_GROUP)
    row_start = first_row + (group_start + pid % per_group % height) * BLOCK_M
    column_start = (pid % per_group // height) * BLOCK_N
    row = row_start + tl.arange(0, BLOCK_M)
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    first_column_line = row_blocks * LINES
    row_flags = tl.load(sound + row_start // LINES + tl.arange(0, BLOCK_M // LINES))
    column_blocks = row_blocks + column_start // LINES + tl.arange(0, BLOCK_N // LINES)
    if tl.minimum(tl.min(row_flags, 0), tl.min(tl.load(sound + column_blocks), 0)) != 0:
        column = column_start + tl.arange(0, BLOCK_N)
        dots = tile_dots(
            videos,
            texts,
            row_start,
            column_start,
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
        row_factor = tl.load(factors + row) * lift
        column_factor = tl.load(factors + first_column_line + column) * lift
        power = tl.exp2(tl.fma(dots, slope, -slope + OFFSET))
        gradient = power * (row_factor[:, None] + column_factor[None, :])
        gradient = with_classes(
            gradient,
            video_ids,
            text_ids,
            weights,
            positive_upstream,
            row,
            column,
            stop_row,
            rows,
            columns,
            offset,
            lift,
            EXCLUDE,
            SHARE,
            LOSS,
        )
        if DESCRIBED:
            out.store([row_start - first_row, column_start], gradient.to(out.dtype))
        else:
            # The padding of a row may be written, and whole vectors are.
            target = out + (row - first_row).to(tl.int64)[:, None] * stride + column[None, :]
            inside = (row < stop_row)[:, None] & (column < stride)[None, :]
            tl.store(target, gradient.to(out.dtype.element_ty), mask=inside)
    else:
        # Narrow pieces: this rare path must not cost the other one its registers.
        PIECE: tl.constexpr = 32
        row_log = tl.load(logs + row)[:, None]
        row_upstream = upstream_of(line_upstream, row, offset, rows, columns, 0, 1.0, LOSS)
        for piece in tl.range(0, BLOCK_N // PIECE):
            piece_start = column_start + piece * PIECE
            column = piece_start + tl.arange(0, PIECE)
            dots = tile_dots(
                video_rows,
                text_rows,
                row_start,
                piece_start,
                stop_row,
                columns,
                depth,
                BLOCK_M,
                PIECE,
                POINTER_K,
                False,
                PRECISION,
                UPCAST,
            )
            column_log = tl.load(logs + first_column_line + column)[None, :]
            column_upstream = upstream_of(
                line_upstream, column, -offset, columns, rows, first_column_line, 1.0, LOSS
            )
            gradient = lift * exact_gradient(
                dots, slope, row_log, column_log, row_upstream[:, None], column_upstream[None, :]
            )
            gradient = with_classes(
                gradient,
                video_ids,
                text_ids,
                weights,
                positive_upstream,
                row,
                column,
                stop_row,
                rows,
                columns,
                offset,
                lift,
                EXCLUDE,
                SHARE,
                LOSS,
            )
            target = out_rows + (row - first_row).to(tl.int64)[:, None] * stride + column[None, :]
            inside = (row < stop_row)[:, None] & (column < columns)[None, :]
            tl.store(target, gradient.to(out_rows.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_row", "stop_row", "rows", "columns", "offset", "row_blocks"])
def diagonal_kernel(
    videos,
    texts,
    scale,
    logs,
    line_upstream,
    positive_upstream,
    out,
    first_row,
    stop_row,
    rows,
    columns,
    offset,
    row_blocks,
    stride,
    depth,
    lift,
    LINES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LOSS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The gradient at positives, subtracted before it is rounded to the product's type."""
    row_start = first_row + tl.program_id(0) * LINES
    row = row_start + tl.arange(0, LINES)
    column = row + offset
    inside = (row < stop_row) & (column >= 0) & (column < columns)
    dots = paired_dots(
        videos,
        texts,
        row_start,
        offset,
        stop_row,
        columns,
        depth,
        LINES,
        BLOCK_K,
        PRECISION,
        UPCAST,
    )
    first_column_line = row_blocks * LINES
    gradient = exact_gradient(
        dots,
        tl.load(scale).to(tl.float32) * LOG2_E,
        tl.load(logs + row, mask=inside, other=0.0),
        tl.load(logs + first_column_line + column, mask=inside, other=0.0),
        upstream_of(line_upstream, row, offset, rows, columns, 0, 1.0, LOSS),
        upstream_of(line_upstream, column, -offset, columns, rows, first_column_line, 1.0, LOSS),
    )
    gradient += upstream_of(positive_upstream, row, offset, rows, columns, 0, -2.0, LOSS)
    target = out + (row - first_row).to(tl.int64) * stride + column
    tl.store(target, (gradient * lift).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "pairs", "lift"])
def finish_gradient_kernel(
    sums,
    embeddings,
    out,
    upstream,
    scale,
    parts,
    rows,
    pairs,
    lift,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOSS: tl.constexpr,
    WRITE: tl.constexpr,
    DOT: tl.constexpr,
):
    """Put the factors back into a block of rows, cast, and sum <embedding, gradient> / scale."""
    pid = tl.program_id(0)
    row = pid * ROWS + tl.arange(0, ROWS)
    factor = tl.load(upstream).to(tl.float32) / lift
    if LOSS:
        factor /= 2.0 * pairs
    scaled = factor * tl.load(scale).to(tl.float32)
    product = tl.zeros((ROWS,), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        depth = start + tl.arange(0, BLOCK_D)
        at = row.to(tl.int64)[:, None] * D + depth[None, :]
        inside = (row < rows)[:, None] & (depth < D)[None, :]
        value = tl.load(sums + at, mask=inside, other=0.0)
        if DOT:
            embedding = tl.load(embeddings + at, mask=inside, other=0.0).to(tl.float32)
            product += tl.sum(value * embedding, 1)
        if WRITE:
            tl.store(out + at, (value * scaled).to(out.dtype.element_ty), mask=inside)
    if DOT:
        tl.store(parts + pid, tl.sum(product, 0) * factor)


def backward(
    block: Block,
    logs: Logs,
    pairs: int,
    upstream: Tensor | Upstream,
    needs: tuple[bool, bool, bool],
    workspace_bytes: int,
) -> Gradients:
    """Gradients of the loss of `pairs` pairs (upstream a 0-dim tensor), or of the logs.

    The gradient by the scale is that of log-sums and logits themselves, not relative to the scale.
    """
    videos, texts = block.videos, block.texts
    need_videos, need_texts, need_scale = needs
    # <v_i, dV_i> / scale sums to the gradient by the scale: no second pass over the tiles.
    dot_texts = need_scale and need_texts and not need_videos
    dot_videos = need_scale and not dot_texts
    sum_videos = need_videos or dot_videos
    rows, columns, dim = videos.shape[0], texts.shape[0], videos.shape[1]
    tile = tile_of(videos)
    half = videos.dtype != torch.float32
    product_dtype = torch.float16 if half else torch.float32
    chunk = backward_chunk_rows(videos, texts, tile, need_texts, workspace_bytes)
    held = min(chunk, rows)
    buffer = videos.new_empty((held, padded_columns(columns)), dtype=product_dtype)
    video_factors = videos.to(product_dtype) if need_texts else videos
    text_factors = texts.to(product_dtype) if sum_videos else texts
    video_sums = videos.new_empty((held if sum_videos else 0, dim), dtype=torch.float32)
    text_sums = videos.new_empty((columns if need_texts else 0, dim), dtype=torch.float32)
    number = -(-(rows if dot_videos else columns) // FINISH_ROWS)
    parts = videos.new_empty((number if need_scale else 0,), dtype=torch.float32)
    gradients = Gradients(
        torch.empty_like(videos) if need_videos else videos.new_empty((0,)),
        torch.empty_like(texts) if need_texts else texts.new_empty((0,)),
        block.scale.new_empty(() if need_scale else (0,)),
    )
    step = _Step(block, logs, upstream, pairs, LIFT if half else 1.0, tile)
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        step.write_dots_gradient(buffer, start, stop)
        gradient = buffer[: stop - start, :columns]
        if sum_videos:
            sums = video_sums[: stop - start]
            accumulate_product(sums, gradient, text_factors, first=True)
            step.finish(
                sums,
                videos[start:stop],
                gradients.videos[start:stop] if need_videos else None,
                parts[start // FINISH_ROWS :] if dot_videos else None,
            )
        if need_texts:
            accumulate_product(text_sums, gradient.T, video_factors[start:stop], first=start == 0)
    if need_texts:
        step.finish(text_sums, texts, gradients.texts, parts if dot_texts else None)
    if need_scale:
        launch(total_kernel, (1,), parts, gradients.scale, number, 1.0, BLOCK=1024)
    return gradients


class _Step:
    """What the launches of one backward pass share."""

    def __init__(
        self,
        block: Block,
        logs: Logs,
        upstream: Tensor | Upstream,
        pairs: int,
        lift: float,
        tile: Tile,
    ) -> None:
        self.block, self.logs, self.pairs = block, logs, pairs
        self.lift, self.tile = lift, tile
        self.loss = isinstance(upstream, Tensor)
        self.line_upstream: Tensor | None = None
        self.positive_upstream: Tensor | None = None
        self.factors = logs.factors
        if isinstance(upstream, Tensor):
            self.factor = upstream
        else:
            # Divided by their largest magnitude, so that float16 holds the result.
            self.factor = torch.cat(upstream).abs().amax()
            unit = self.factor.reciprocal().masked_fill(self.factor == 0, 0.0)
            rows, columns = upstream.rows.shape[0], upstream.columns.shape[0]
            self.line_upstream = torch.zeros_like(logs.lines)
            self.line_upstream[:rows] = upstream.rows
            self.line_upstream[line_blocks(rows) * LINES :][:columns] = upstream.columns
            self.line_upstream *= unit
            self.positive_upstream = upstream.positives * unit
            self.factors = self.factors * self.line_upstream
        self.operands = tile_operands(block.videos, block.texts, tile)

    def write_dots_gradient(self, buffer: Tensor, start: int, stop: int) -> None:
        """The chunk's rows [start, stop) of the gradient of the dot products, lifted."""
        block, tile, logs = self.block, self.tile, self.logs
        videos, texts = block.videos, block.texts
        columns, dim = texts.shape
        sizes = (start, stop, videos.shape[0], columns, block.offset)
        strides = (line_blocks(videos.shape[0]), buffer.stride(0), dim, self.lift)
        pairs = block.pair_options()
        launch(
            dots_gradient_kernel,
            (-(-(stop - start) // tile.rows) * -(-columns // tile.columns),),
            *self.operands,
            videos,
            texts,
            block.scale,
            logs.lines,
            self.factors,
            logs.sound,
            block.video_ids,
            block.text_ids,
            block.weights,
            self.line_upstream,
            self.positive_upstream,
            tile_target(buffer, tile),
            buffer,
            *sizes,
            *strides,
            POINTER_K=pointer_depth(videos),
            LINES=LINES,
            TILE_GROUP=TILE_GROUP,
            LOSS=self.loss,
            **tile.options(),
            **pairs,
            **product_options(videos),
        )
        if pairs["SHARE"] or start + block.offset >= columns or stop + block.offset <= 0:
            return
        launch(
            diagonal_kernel,
            (-(-(stop - start) // LINES),),
            videos,
            texts,
            block.scale,
            logs.lines,
            self.line_upstream,
            self.positive_upstream,
            buffer,
            *sizes,
            *strides,
            LINES=LINES,
            BLOCK_K=pointer_depth(videos),
            LOSS=self.loss,
            num_warps=4,
            num_stages=2,
            **product_options(videos),
        )

    def finish(
        self, sums: Tensor, embeddings: Tensor, out: Tensor | None, parts: Tensor | None
    ) -> None:
        """Turn fp32 sums into a gradient, and sum its products with the embeddings."""
        rows, dim = sums.shape
        launch(
            finish_gradient_kernel,
            (-(-rows // FINISH_ROWS),),
            sums,
            embeddings,
            out,
            self.factor,
            self.block.scale,
            parts,
            rows,
            self.pairs,
            self.lift,
            D=dim,
            ROWS=FINISH_ROWS,
            BLOCK_D=min(256, triton.next_power_of_2(dim)),
            LOSS=self.loss,
            WRITE=out is not None,
            DOT=parts is not None,
            num_warps=4,
        )
