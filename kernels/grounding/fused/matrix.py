"""Symmetric InfoNCE over a matrix of scores: forward and backward read the matrix once each.

Logarithms and exponentials are to base 2 internally. Every block of scores has its own maxima, so
no exponential overflows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.launch import launch
from svilm_fast.kernels.primitives import LOG2_E, ordered_sum

LN_2 = tl.constexpr(0.6931471805599453)
STATS_ROWS = 64
STATS_COLUMNS = 128
GRADIENT_ROWS = 32
MERGE_BLOCK = 256
# Up to this size one program merges all blocks and writes the loss in the same launch.
SINGLE_PROGRAM_SIZE = 2048


class MatrixStatistics(NamedTuple):
    """The loss, log2 sums [2, n] of every row and column, and N (at least 1), a float32 number.

    The log sum of a row that is not valid is infinite.
    """

    loss: Tensor
    lse: Tensor
    pairs: Tensor


@triton.jit
def logit_factor(scale):
    """The factor from scores to logits in units of log2."""
    return tl.cast(tl.load(scale), tl.float32) * LOG2_E


@triton.jit
def scaled(values, factor):
    """Scores times `logit_factor`, rounded before any subtraction.

    If the compiler contracted the product with a later subtraction, the largest logit minus itself
    would be the rounding error of the product instead of exactly 0.
    """
    return tl.fma(values, factor, 0.0)


@triton.jit
def load_tile(scores, scale, row, column, size):
    """Scores, scaled scores in units of log2, their offsets and the mask of those inside."""
    inside = (row < size)[:, None] & (column < size)[None, :]
    offsets = row.to(tl.int64)[:, None] * size + column[None, :]
    values = tl.load(scores + offsets, mask=inside, other=0.0)
    return values, scaled(values, logit_factor(scale)), offsets, inside


@triton.jit
def store_statistics(logits, maxima, sums, inside, AXIS: tl.constexpr):
    """Store the maximum and the sum of 2^(x - maximum) over an axis."""
    largest = tl.max(logits, AXIS)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(maxima, largest, mask=inside)
    # sum over the axis of exp(s S_ij - max)
    tl.store(sums, tl.sum(tl.exp2(logits - tl.expand_dims(shift, AXIS)), AXIS), mask=inside)


@triton.jit
def stats_kernel(
    scores,
    scale,
    valid,
    row_max,
    row_sum,
    column_max,
    column_sum,
    size,
    HAS_VALID: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Maximum and sum of 2^(x - maximum) of every row and column of one block."""
    column_blocks = tl.cdiv(size, BLOCK_N)
    row_block = tl.program_id(0) // column_blocks
    column_block = tl.program_id(0) % column_blocks
    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    _, logits, _, inside = load_tile(scores, scale, row, column, size)
    in_row = inside
    if HAS_VALID:
        in_row = inside & (tl.load(valid + column, mask=column < size, other=0) != 0)[None, :]
    by_row = tl.where(in_row, logits, float("-inf"))
    at = column_block.to(tl.int64) * size + row
    store_statistics(by_row, row_max + at, row_sum + at, row < size, 1)
    by_column = tl.where(inside, logits, float("-inf"))
    at = row_block.to(tl.int64) * size + column
    store_statistics(by_column, column_max + at, column_sum + at, column < size, 0)


@triton.jit
def merged_lse(maxima, sums, index, size, partials, PARTIALS: tl.constexpr, BLOCK: tl.constexpr):
    """log2 of the sum over all partials, in a fixed order."""
    largest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in tl.range(0, partials, PARTIALS):
        part = first + tl.arange(0, PARTIALS)
        inside = (part < partials)[:, None] & (index < size)[None, :]
        offsets = part.to(tl.int64)[:, None] * size + index[None, :]
        maximum = tl.load(maxima + offsets, mask=inside, other=float("-inf"))
        amount = tl.load(sums + offsets, mask=inside, other=0.0)
        new = tl.maximum(largest, tl.max(maximum, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - shift) + tl.sum(
            amount * tl.exp2(maximum - shift[None, :]), 0
        )
        largest = new
    # The largest term is 1, so only an empty sum is below 1, and its result is never used. A GPU's
    # maximum ignores NaN, but the total stays NaN.
    total = tl.where(total < 1.0, 1.0, total)
    return tl.where(largest == float("-inf"), 0.0, largest) + tl.log2(total)


@triton.jit
def merge_kernel(
    scores,
    scale,
    valid,
    row_max,
    row_sum,
    column_max,
    column_sum,
    lse,
    partial_loss,
    partial_count,
    size,
    row_partials,
    column_partials,
    HAS_VALID: tl.constexpr,
    SINGLE: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row and column log sums, and this program's part of the loss (all of it if SINGLE)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    rows = merged_lse(row_max, row_sum, index, size, row_partials, PARTIALS, BLOCK)
    columns = merged_lse(column_max, column_sum, index, size, column_partials, PARTIALS, BLOCK)
    tl.store(lse + size + index, columns, mask=inside)
    positive = tl.load(scores + index.to(tl.int64) * (size + 1), mask=inside, other=0.0)
    taken = inside
    if HAS_VALID:
        taken = inside & (tl.load(valid + index, mask=inside, other=0) != 0)
    # A row that is not valid has no softmax: its powers are 2^-infinity.
    tl.store(lse + index, tl.where(taken, rows, float("inf")), mask=inside)
    doubled = 2.0 * scaled(positive, logit_factor(scale))
    # lse_j(s S_ij) + lse_i(s S_ij) - 2 s S_ii, in units of log2
    loss = tl.where(taken, rows + columns - doubled, 0.0)
    count = tl.where(taken, 1.0, 0.0)
    if SINGLE:
        number = tl.maximum(tl.sum(count, 0), 1.0)
        tl.store(partial_loss, tl.sum(loss, 0) * LN_2 / (2.0 * number))
        tl.store(partial_count, number)
    else:
        tl.store(partial_loss + tl.program_id(0), tl.sum(loss, 0))
        tl.store(partial_count + tl.program_id(0), tl.sum(count, 0))


@triton.jit
def loss_kernel(partial_loss, partial_count, loss, count, partials, BLOCK: tl.constexpr):
    """Add the programs' parts of the loss in a fixed order."""
    losses = tl.zeros((BLOCK,), dtype=tl.float32)
    counts = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in tl.range(0, partials, BLOCK):
        index = first + tl.arange(0, BLOCK)
        losses += tl.load(partial_loss + index, mask=index < partials, other=0.0)
        counts += tl.load(partial_count + index, mask=index < partials, other=0.0)
    number = tl.maximum(tl.sum(counts, 0), 1.0)
    tl.store(loss, tl.sum(losses, 0) * LN_2 / (2.0 * number))
    tl.store(count, number)


@triton.jit
def pair_gradient(logits, row_lse, column_lse, diagonal, counted):
    """Gradient of 2N loss by the scaled scores: row softmax + column softmax - 2 [i = j].

    0 where `counted` is not set: in columns that are not valid. The log sum of a row that is not
    valid is infinite.
    """
    # exp(s S_ij - lse_j) + exp(s S_ij - lse_i) - 2 [i = j]
    by_row = tl.exp2(logits - row_lse)
    by_column = tl.exp2(logits - column_lse)
    return tl.where(counted, by_row + by_column - tl.where(diagonal, 2.0, 0.0), 0.0)


@triton.jit
def matrix_gradient_kernel(
    scores,
    scale,
    valid,
    lse,
    count,
    upstream,
    scores_gradient,
    partial_scale,
    size,
    HAS_VALID: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradient of the scores, and the contribution of this block to the gradient of the scale."""
    column_blocks = tl.cdiv(size, BLOCK_N)
    row = (tl.program_id(0) // column_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    values, logits, offsets, inside = load_tile(scores, scale, row, column, size)
    counted = column < size
    rows = tl.load(lse + row, mask=row < size, other=0.0)
    columns = tl.load(lse + size + column, mask=counted, other=0.0)
    if HAS_VALID:
        counted = tl.load(valid + column, mask=counted, other=0) != 0
    gradient = pair_gradient(
        logits,
        rows[:, None],
        columns[None, :],
        row[:, None] == column[None, :],
        counted[None, :],
    )
    factor = tl.load(upstream) / (2.0 * tl.load(count))
    # dL/dS_ij = s / (2N) x gradient
    by_score = gradient * (factor * tl.load(scale).to(tl.float32))
    tl.store(scores_gradient + offsets, by_score, mask=inside)
    # dL/ds = sum_ij S_ij gradient / (2N)
    by_scale = tl.where(inside, gradient * values, 0.0)
    tl.store(partial_scale + tl.program_id(0), tl.sum(tl.sum(by_scale, 1), 0) * factor)


@triton.jit
def sum_kernel(partials, result, number, BLOCK: tl.constexpr):
    """Sum of partial results in a fixed order."""
    tl.store(result, ordered_sum(partials, number, BLOCK).to(result.dtype.element_ty))


def matrix_forward(scores: Tensor, scale: Tensor, valid: Tensor | None) -> MatrixStatistics:
    """Loss and statistics of a contiguous float32 score matrix; `valid` int8 [n] or None."""
    size = scores.shape[0]
    row_partials = -(-size // STATS_COLUMNS)
    column_partials = -(-size // STATS_ROWS)
    row_max, row_sum = scores.new_empty((2, row_partials, size))
    column_max, column_sum = scores.new_empty((2, column_partials, size))
    lse = scores.new_empty((2, size))
    loss, count = scores.new_empty(()), scores.new_empty(())
    has_valid = valid is not None
    launch(
        stats_kernel,
        (row_partials * column_partials,),
        scores,
        scale,
        valid,
        row_max,
        row_sum,
        column_max,
        column_sum,
        size,
        HAS_VALID=has_valid,
        BLOCK_M=STATS_ROWS,
        BLOCK_N=STATS_COLUMNS,
        num_warps=8,
    )
    single = size <= SINGLE_PROGRAM_SIZE
    programs = 1 if single else -(-size // MERGE_BLOCK)
    partial_loss, partial_count = loss, count
    if not single:
        partial_loss, partial_count = scores.new_empty((2, programs))
    launch(
        merge_kernel,
        (programs,),
        scores,
        scale,
        valid,
        row_max,
        row_sum,
        column_max,
        column_sum,
        lse,
        partial_loss,
        partial_count,
        size,
        row_partials,
        column_partials,
        HAS_VALID=has_valid,
        SINGLE=single,
        PARTIALS=4 if single else 8,
        BLOCK=SINGLE_PROGRAM_SIZE if single else MERGE_BLOCK,
        num_warps=16 if single else 8,
    )
    if not single:
        launch(
            loss_kernel,
            (1,),
            partial_loss,
            partial_count,
            loss,
            count,
            programs,
            BLOCK=MERGE_BLOCK,
            num_warps=4,
        )
    return MatrixStatistics(loss, lse, count)


def matrix_backward(
    scores: Tensor,
    scale: Tensor,
    valid: Tensor | None,
    statistics: MatrixStatistics,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the scores (float32) and of the scale (in its dtype)."""
    size = scores.shape[0]
    blocks = -(-size // GRADIENT_ROWS) * -(-size // STATS_COLUMNS)
    scores_gradient = torch.empty_like(scores)
    partial_scale = scores.new_empty((blocks,))
    scale_gradient = torch.empty_like(scale)
    launch(
        matrix_gradient_kernel,
        (blocks,),
        scores,
        scale,
        valid,
        statistics.lse,
        statistics.pairs,
        upstream,
        scores_gradient,
        partial_scale,
        size,
        HAS_VALID=valid is not None,
        BLOCK_M=GRADIENT_ROWS,
        BLOCK_N=STATS_COLUMNS,
        num_warps=8,
    )
    launch(sum_kernel, (1,), partial_scale, scale_gradient, blocks, BLOCK=1024, num_warps=4)
    return scores_gradient, scale_gradient
