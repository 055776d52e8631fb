"""The scale of float16 gradients, and the kernel that computes gradients from sums."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.launch import launch
from svilm_fast.kernels.primitives import ordered_sum

from .tiles import BETA_MAX, load_beta

FINISH_ROWS = 64
ABSMAX_BLOCK = 4096


@triton.jit
def floor_power_of_two(value):
    """Largest power of two that is at most a positive normal float32."""
    bits = tl.cast(value, tl.int32, bitcast=True) & 0x7F800000
    return tl.cast(bits, tl.float32, bitcast=True)


@triton.jit
def gradient_scale(beta, largest_upstream, LOSS: tl.constexpr, HALF: tl.constexpr):
    """Power of two that scales d(dots) to at most half of float16's range.

    For unit vectors |p (1 + beta (a - r))| <= 1 + beta / 2, and the upstream gradient that the loss
    computes is <= 2.
    """
    multiplier = 1.0
    if HALF:
        if LOSS:
            bound = 2.0 + beta
        else:
            bound = tl.load(largest_upstream) * (1.0 + 0.5 * beta)
        multiplier = floor_power_of_two(32768.0 / tl.minimum(tl.maximum(bound, 1e-30), 1e30))
    return multiplier


@triton.jit
def absmax_kernel(upstream, partials, number, BLOCK: tl.constexpr):
    """Largest magnitude of one block of the upstream gradient."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(upstream + index, mask=index < number, other=0.0)
    tl.store(partials + tl.program_id(0), tl.max(tl.abs(values), 0))


@triton.jit
def max_kernel(partials, result, number, BLOCK: tl.constexpr):
    """Largest of the blocks' magnitudes."""
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in tl.range(0, number, BLOCK):
        index = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(partials + index, mask=index < number, other=0.0))
    tl.store(result, tl.max(largest, 0))


@triton.jit
def finish_kernel(
    groups_sum,
    nouns_sum,
    groups_gradient,
    nouns_gradient,
    beta_gradient,
    scale_gradient,
    partial_beta,
    partial_scale,
    beta,
    scale,
    count,
    loss_upstream,
    largest_upstream,
    group_rows,
    noun_rows,
    noun_parts,
    tiles,
    group_programs,
    noun_programs,
    G: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOSS: tl.constexpr,
    HALF: tl.constexpr,
    NEED_BETA: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    """Remove factors and padding from the sums and cast; the last program sums scalar gradients."""
    column_blocks: tl.constexpr = PADDED_D // BLOCK_D
    pid = tl.program_id(0) // column_blocks
    columns = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    raw = tl.load(beta).to(tl.float32)
    sharpness = load_beta(beta)
    if LOSS:
        pair_factor = tl.load(loss_upstream) / (2.0 * tl.load(count))
        score_factor = pair_factor * tl.load(scale).to(tl.float32)
    else:
        score_factor = 1.0
    factor = score_factor / gradient_scale(sharpness, largest_upstream, LOSS, HALF)
    if pid < group_programs:
        rows = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        video = rows // PADDED_G
        group = rows % PADDED_G
        mask = ((rows < group_rows) & (group < G))[:, None] & (columns < D)[None, :]
        source = groups_sum + rows[:, None] * PADDED_D + columns[None, :]
        values = tl.load(source, mask=mask, other=0.0) * factor
        target = groups_gradient + ((video * G + group) * D)[:, None] + columns[None, :]
        tl.store(target, values.to(groups_gradient.dtype.element_ty), mask=mask)
    elif pid < group_programs + noun_programs:
        rows = (pid - group_programs).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        caption = rows // PADDED_K
        noun = rows % PADDED_K
        mask = ((rows < noun_rows) & (noun < K))[:, None] & (columns < D)[None, :]
        values = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
        for part in tl.range(0, noun_parts):
            source = nouns_sum + (rows + part * noun_rows)[:, None] * PADDED_D
            values += tl.load(source + columns[None, :], mask=mask, other=0.0)
        target = nouns_gradient + ((caption * K + noun) * D)[:, None] + columns[None, :]
        tl.store(target, (values * factor).to(nouns_gradient.dtype.element_ty), mask=mask)
    elif tl.program_id(0) % column_blocks == 0:
        if NEED_BETA:
            slope = ordered_sum(partial_beta, tiles, SUM_BLOCK) * score_factor
            outward = ((raw > BETA_MAX) & (slope < 0.0)) | ((raw < 0.0) & (slope > 0.0))
            slope = tl.where(outward, 0.0, slope)
            tl.store(beta_gradient, slope.to(beta_gradient.dtype.element_ty))
        if NEED_SCALE:
            slope = ordered_sum(partial_scale, tiles, SUM_BLOCK) * pair_factor
            tl.store(scale_gradient, slope.to(scale_gradient.dtype.element_ty))


def largest_magnitude(upstream: Tensor) -> Tensor:
    """max |upstream| as a 0-dim float32 tensor on the device."""
    programs = -(-upstream.numel() // ABSMAX_BLOCK)
    partials = upstream.new_empty((programs,))
    result = upstream.new_empty(())
    launch(absmax_kernel, (programs,), upstream, partials, upstream.numel(), BLOCK=ABSMAX_BLOCK)
    launch(max_kernel, (1,), partials, result, programs, BLOCK=1024)
    return result
