"""Kernels that compute logarithms and the loss from partial sums."""

from __future__ import annotations

import triton
import triton.language as tl

from ...primitives import LOG2_E, ordered_sum
from .tiles import (
    LARGEST_SUM,
    OFFSET,
    ONE_OVER_OFFSET,
    SMALLEST_SUM,
    add_parts,
    paired_dots,
    same_class,
    tile_dots,
)


@triton.jit
def any_layout(values, LINES: tl.constexpr):
    """The same values in any order, for a reduction over all of them.

    Triton 3.7.1 cannot reduce a slice of a tensor-memory layout (sm_100); the reshape changes the
    layout.
    """
    return tl.reshape(values, (LINES,), can_reorder=True)


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
    """log2 of the lines' sums relative to 2^slope, recomputed with a running maximum per line."""
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
    # If all pairs of a line are excluded, the result is -inf.
    # A GPU's maximum ignores a NaN among the logits, but the total is NaN and stays NaN.
    return maximum + tl.log2(tl.where(total == 0.0, 1.0, total)) - slope


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
    others,
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
    """Logarithms of a block of row or column sums; sums out of range are recomputed."""
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
    total = add_parts(total, sums, parts, line, count, inside)
    partner = line + shift
    paired = inside & (partner >= 0) & (partner < other_count)
    if SHARE:
        row = tl.where(is_row, line, partner)
        positive = tl.zeros((LINES,), dtype=tl.float32)
        known = inside & (row >= 0) & (row < rows)
        positive = add_parts(positive, positives, positive_parts, row, rows, known)
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
    # The same expression as in `sums_kernel`, so that rounding errors of sum and positive cancel.
    exponent = tl.fma(positive, slope, -slope + OFFSET)
    rest = total
    if not SHARE:
        total += tl.where(paired, tl.exp2(exponent), 0.0)
    in_range = (total > SMALLEST_SUM) & (total < LARGEST_SUM)
    usable = tl.where(in_range, total, 1.0)
    # A confident pair has a sum near 2^OFFSET; its logarithm relative to 2^OFFSET is small and
    # precise.
    large = usable > 1.0
    # log2 e (r_i - alpha), likewise of columns
    log = tl.log2(tl.where(large, usable * ONE_OVER_OFFSET, usable))
    log = tl.where(large, log, log - OFFSET)
    broken = inside & (in_range == 0)
    any_broken = tl.max(any_layout(broken.to(tl.int32), LINES), 0)
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
    # Padding lines are written too, because backward reads tiles without a mask.
    at = pid * LINES + tl.arange(0, LINES)
    tl.store(logs + at, tl.where(inside, log, 0.0))
    in_loss = inside
    if LOSS:
        in_loss = paired
    factor = tl.where(in_range & in_loss, tl.exp2(-tl.where(in_range, log, 0.0) - OFFSET), 0.0)
    tl.store(factors + at, factor)
    tl.store(sound + pid, (any_broken == 0).to(tl.int32))
    # log2 e (r_i - s_i,i+o)
    term = log - (exponent - OFFSET)
    if not SHARE:
        # Share of the negatives in the sum, without cancellation:
        # 1 - p = 1 - exp(s_i,i+o - r_i) = rest / total
        share = tl.where(in_range, rest / usable, 1.0 - tl.exp2(-term))
        tl.store(others + at, tl.where(paired, share, 0.0))
    if is_row:
        tl.store(exponents + line, exponent - OFFSET, mask=inside)
    if LOSS:
        if not SHARE:
            # log2 e log(1 + x), x = rest / e_ii, accurate for small x: Kahan's quotient removes
            # the rounding error of 1 + x.
            near = in_range & (term < 8.0)
            ratio = rest * tl.exp2(tl.where(near, -exponent, 0.0))
            ratio = tl.where(near, ratio, 1.0)
            rounded = 1.0 + ratio
            exact = rounded == 1.0
            quotient = tl.where(exact, LOG2_E * ratio, ratio) / tl.where(exact, 1.0, rounded - 1.0)
            logarithm = tl.where(exact, 1.0, tl.log2(rounded))
            term = tl.where(near, logarithm * quotient, term)
        counted = any_layout(tl.where(paired, term, 0.0), LINES)
        tl.store(terms + pid, tl.sum(counted, 0))


@triton.jit(do_not_specialize=["number", "factor"])
def total_kernel(parts, result, number, factor, BLOCK: tl.constexpr):
    """factor x the sum of `number` values, in a fixed order."""
    tl.store(result, ordered_sum(parts, number, BLOCK) * factor)
