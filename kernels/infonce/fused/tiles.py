"""Device functions that forward and backward share."""

from __future__ import annotations

import triton
import triton.language as tl

from ...primitives import dot

# Every power is 2^(slope a - slope + OFFSET). Powers of cosines down to 1 - 226/slope and sums of
# 2^26 powers are representable (README, "One exponential").
OFFSET = tl.constexpr(100.0)
# A sum of up to 2^26 terms within this range has a relative error of at most 2^-20 from lost terms.
SMALLEST_SUM = tl.constexpr(2.0**-80)
LARGEST_SUM = tl.constexpr(2.0**126)
ONE_OVER_OFFSET = tl.constexpr(2.0**-100)


@triton.jit
def tile_dots(
    left,
    right,
    left_start,
    right_start,
    left_stop,
    right_stop,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Dot products [BLOCK_M, BLOCK_N] of rows of two matrices [*, depth].

    The matrices are tensor descriptors (DESCRIBED) or pointers. Results of rows past a stop have no
    meaning: pointers repeat the last row there, and descriptors give other rows or zero.
    """
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if not DESCRIBED:
        inner = tl.arange(0, BLOCK_K)
        left_row = tl.minimum(left_start + tl.arange(0, BLOCK_M), left_stop - 1)
        right_row = tl.minimum(right_start + tl.arange(0, BLOCK_N), right_stop - 1)
        left_at = left + left_row.to(tl.int64)[:, None] * depth + inner[None, :]
        right_at = right + right_row.to(tl.int64)[:, None] * depth + inner[None, :]
    for start in tl.range(0, depth, BLOCK_K):
        if DESCRIBED:
            a = left.load([left_start, start])
            b = right.load([right_start, start])
        else:
            a = tl.load(left_at + start)
            b = tl.load(right_at + start)
        dots = dot(a, b.T, dots, UPCAST, PRECISION)
    return dots


@triton.jit
def diagonal_tiles(
    first_column,
    offset,
    first_row,
    stop_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """First and last row tile with positives of a column tile; without positives, last < first.

    The padding of the last column tile counts as columns.
    """
    first = tl.maximum(first_column - offset, first_row) - first_row
    last = tl.minimum(first_column + BLOCK_N - offset, stop_row) - 1 - first_row
    return tl.where(first <= last, first // BLOCK_M, 1), tl.where(first <= last, last // BLOCK_M, 0)


@triton.jit
def paired_dots(
    left,
    right,
    left_start,
    shift,
    left_stop,
    right_stop,
    depth,
    LINES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Dot products [LINES] of row i of `left` with row i + shift of `right`; 0 without that row.

    The diagonal of a tensor-core tile, so that rounding is the same as in `tile_dots`.
    """
    inner = tl.arange(0, BLOCK_K)
    line = left_start + tl.arange(0, LINES)
    partner = line + shift
    known = (line < left_stop) & (partner >= 0) & (partner < right_stop)
    left_row = tl.minimum(line, left_stop - 1).to(tl.int64)
    right_row = tl.minimum(tl.maximum(partner, 0), right_stop - 1).to(tl.int64)
    left_at = left + left_row[:, None] * depth + inner[None, :]
    right_at = right + right_row[:, None] * depth + inner[None, :]
    dots = tl.zeros((LINES, LINES), dtype=tl.float32)
    for start in tl.range(0, depth, BLOCK_K):
        a = tl.load(left_at + start)
        b = tl.load(right_at + start)
        dots = dot(a, b.T, dots, UPCAST, PRECISION)
    here = tl.arange(0, LINES)
    own = tl.sum(tl.where(here[:, None] == here[None, :], dots, 0.0), 1)
    return tl.where(known, own, 0.0)


@triton.jit
def same_class(left_ids, right_ids, left, right, left_stop, right_stop):
    """Whether two rows have equal ids, [M, N]; rows past the end equal no other row."""
    left_id = tl.load(left_ids + left, mask=left < left_stop, other=-1)
    right_id = tl.load(right_ids + right, mask=right < right_stop, other=-2)
    return left_id[:, None] == right_id[None, :]


@triton.jit
def add_parts(total, partials, parts, line, lines, inside):
    """`total` plus the `parts` partial sums of every line, added in order."""
    for part in tl.range(0, parts):
        at = partials + tl.cast(part, tl.int64) * lines + line
        total += tl.load(at, mask=inside, other=0.0)
    return total
