"""Kernels that write the gradient of the dot products and finish the products of cuBLAS."""

from __future__ import annotations

import triton
import triton.language as tl

from ...primitives import LOG2_E, tile_at
from .tiles import OFFSET, same_class, tile_dots


@triton.jit
def upstream_of(
    upstream, line, shift, count, other_count, first, PER_PAIR: tl.constexpr, LOSS: tl.constexpr
):
    """Upstream gradients of lines: loaded, or with LOSS the number PER_PAIR if the line has a pair.

    Lines out of range get 0.
    """
    inside = (line >= 0) & (line < count)
    if LOSS:
        partner = line + shift
        gradient = tl.where((partner >= 0) & (partner < other_count), PER_PAIR, 0.0)
    else:
        gradient = tl.load(upstream + first + line, mask=inside, other=0.0)
    return tl.where(inside, gradient, 0.0)


@triton.jit
def tile_upstream(upstream, line, shift, count, other_count, first, LOSS: tl.constexpr):
    """`upstream_of` the lines of a tile; their memory is padded with zeros, so it needs no mask."""
    if LOSS:
        gradient = upstream_of(upstream, line, shift, count, other_count, first, 1.0, LOSS)
    else:
        gradient = tl.load(upstream + first + line)
    return gradient


@triton.jit
def exact_gradient(exponent, row_log, column_log, row_upstream, column_upstream):
    """Gradient of the log-sums by the dot products a, with one power per direction.

    exponent: slope (a - 1).
    """
    # A line whose pairs are all excluded gets no gradient: 2^(x - infinity) is 0.
    row_log = tl.where(row_log == float("-inf"), float("inf"), row_log)
    column_log = tl.where(column_log == float("-inf"), float("inf"), column_log)
    # dS_ij = g^r_i exp(s_ij - r_i) + g^c_j exp(s_ij - c_j)
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
    """Clear the gradient of excluded pairs, or add that of shared positives."""
    if EXCLUDE or SHARE:
        same = same_class(video_ids, text_ids, row, column, stop_row, columns)
        if EXCLUDE:
            diagonal = (row + offset)[:, None] == column[None, :]
            gradient = tl.where(same & (diagonal == 0), 0.0, gradient)
        else:
            positive = upstream_of(positive_upstream, row, offset, rows, columns, 0, -2.0, LOSS)
            positive *= tl.load(weights + row, mask=row < stop_row, other=0.0) * lift
            # + g^p_i Y_ij
            gradient += tl.where(same, positive[:, None], 0.0)
    return gradient


@triton.jit(do_not_specialize=["first_row", "stop_row", "rows", "columns", "offset", "row_blocks"])
def dots_gradient_kernel(
    videos,
    texts,
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
    first_row,
    stop_row,
    rows,
    columns,
    offset,
    row_blocks,
    stride,
    lift,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
    TILE_GROUP: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SHARE: tl.constexpr,
    LOSS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`lift` x the gradient of the dot products, without the common factor of upstream.

    A program takes every `tl.num_programs(0)`-th tile. Without SHARE, `diagonal_kernel` overwrites
    the positives afterwards.
    """
    row_tiles, column_tiles = tl.cdiv(stop_row - first_row, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    slope = tl.load(scale).to(tl.float32) * LOG2_E
    first_column_line = row_blocks * LINES
    # One flat loop over tiles and depth: the copies of the next tile are under way while the
    # gradient of this one is computed.
    for tile in tl.range(
        tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=FLATTEN
    ):
        row_tile, column_tile = tile_at(tile, row_tiles, column_tiles, TILE_GROUP)
        row_start = first_row + row_tile * BLOCK_M
        column_start = column_tile * BLOCK_N
        dots = tile_dots(
            videos,
            texts,
            row_start,
            column_start,
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
        row_flags = tl.load(sound + row_start // LINES + tl.arange(0, BLOCK_M // LINES))
        column_blocks = row_blocks + column_start // LINES + tl.arange(0, BLOCK_N // LINES)
        is_sound = tl.minimum(tl.min(row_flags, 0), tl.min(tl.load(sound + column_blocks), 0))
        row = row_start + tl.arange(0, BLOCK_M)
        row_factor = tl.load(factors + row) * lift
        # In halves: fewer registers, and a smaller buffer for the store.
        halves = tl.permute(tl.reshape(dots, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)).split()
        for half in tl.static_range(2):
            half_start = column_start + half * (BLOCK_N // 2)
            column = half_start + tl.arange(0, BLOCK_N // 2)
            if is_sound != 0:
                column_factor = tl.load(factors + first_column_line + column) * lift
                power = tl.exp2(tl.fma(halves[half], slope, -slope + OFFSET))
                # e_ij (g^r_i / exp(r_i) + g^c_j / exp(c_j)): the same with one power
                gradient = power * (row_factor[:, None] + column_factor[None, :])
            else:
                row_log = tl.load(logs + row)
                column_log = tl.load(logs + first_column_line + column)
                row_upstream = tile_upstream(line_upstream, row, offset, rows, columns, 0, LOSS)
                column_upstream = tile_upstream(
                    line_upstream, column, -offset, columns, rows, first_column_line, LOSS
                )
                gradient = lift * exact_gradient(
                    tl.fma(halves[half], slope, -slope),
                    row_log[:, None],
                    column_log[None, :],
                    row_upstream[:, None],
                    column_upstream[None, :],
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
            if DESCRIBED:
                out.store([row_start - first_row, half_start], gradient.to(out.dtype))
            else:
                # The padding of a row may be written, and whole vectors are.
                target = out + (row - first_row).to(tl.int64)[:, None] * stride + column[None, :]
                inside = (row < stop_row)[:, None] & (column < stride)[None, :]
                tl.store(target, gradient.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_row", "stop_row", "rows", "columns", "offset", "row_blocks"])
def diagonal_kernel(
    others,
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
    lift,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
    LOSS: tl.constexpr,
):
    """Overwrite the gradient at positives: p - 1 comes from the negatives, not from p."""
    row = first_row + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = row + offset
    inside = (row < stop_row) & (column >= 0) & (column < columns)
    first_column_line = row_blocks * LINES
    of_row = upstream_of(line_upstream, row, offset, rows, columns, 0, 1.0, LOSS)
    of_column = upstream_of(
        line_upstream, column, -offset, columns, rows, first_column_line, 1.0, LOSS
    )
    of_positive = upstream_of(positive_upstream, row, offset, rows, columns, 0, -2.0, LOSS)
    # g^r (1 - others_r) + g^c (1 - others_c) + g^p, where exp(s - r) = 1 - others_r
    gradient = of_row + of_column + of_positive
    gradient -= of_row * tl.load(others + row, mask=inside, other=0.0)
    gradient -= of_column * tl.load(others + first_column_line + column, mask=inside, other=0.0)
    target = out + (row - first_row).to(tl.int64) * stride + column
    tl.store(target, (gradient * lift).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "splits", "pairs", "lift"])
def finish_gradient_kernel(
    sums,
    embeddings,
    out,
    upstream,
    scale,
    parts,
    rows,
    splits,
    pairs,
    lift,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOSS: tl.constexpr,
    WRITE: tl.constexpr,
    DOT: tl.constexpr,
):
    """Multiply a block of rows by its factors, cast, and sum <embedding, gradient> / scale."""
    pid = tl.program_id(0)
    row = pid * ROWS + tl.arange(0, ROWS)
    factor = tl.load(upstream).to(tl.float32) / lift
    if LOSS:
        factor /= 2.0 * pairs
    # dV = alpha dS T, dT = alpha dS^T V: the sums hold the products
    scaled = factor * tl.load(scale).to(tl.float32)
    depth = tl.arange(0, BLOCK_D)
    at = row.to(tl.int64)[:, None] * D + depth[None, :]
    inside = (row < rows)[:, None] & (depth < D)[None, :]
    value = tl.load(sums + at, mask=inside, other=0.0)
    for split in tl.range(1, splits):
        part_at = sums + tl.cast(split, tl.int64) * rows * D + at
        value += tl.load(part_at, mask=inside, other=0.0)
    if WRITE:
        tl.store(out + at, (value * scaled).to(out.dtype.element_ty), mask=inside)
    if DOT:
        embedding = tl.load(embeddings + at, mask=inside, other=0.0).to(tl.float32)
        # dalpha = sum_i <v_i, dV_i> / alpha
        product = tl.sum(tl.sum(value * embedding, 1), 0)
        tl.store(parts + pid, product * factor)
