"""Kernels that keep a tile of nouns in shared memory while the group tokens stream past it.

The tensor cores multiply the next tile while the epilogue of this one is computed; beside the last
epilogue of a strip they multiply one tile more than needed. For half precision on compute
capability 9.0, where a tile of nouns of full depth fits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import descriptor, power_of_two

from .finish import gradient_scale
from .layout import GroundingTile, Layout
from .matrix import logit_factor
from .tiles import (
    dots_gradient,
    halves,
    load_beta,
    load_pairs,
    load_row,
    pair_upstream,
    slope_of,
    store_scores,
)

TILE = GroundingTile(rows=128, columns=128, depth=256, warps=8, stages=2)
# Backward with fewer than 32 groups: more videos in a tile, so more numbers per video and row.
NARROW_TILE = dataclasses.replace(TILE, columns=64)
# Bytes that a descriptor needs its memory to be aligned to.
ALIGNMENT = 16


def resident_tile(groups: Tensor, layout: Layout, *, gradient: bool) -> GroundingTile | None:
    """The tile of the kernel of scores or gradients, or None where it cannot take the groups."""
    fits = layout.dtype == torch.float16 and layout.padded_dim <= TILE.depth
    # A group tensor of the caller's may start anywhere; the other buffers are our own.
    aligned = groups.is_meta or groups.data_ptr() % ALIGNMENT == 0
    if not (fits and aligned and traits(groups.device).capability[0] == 9):
        return None
    return NARROW_TILE if gradient and layout.padded_groups < 32 else TILE


def gluon_obstacle(groups: Tensor, layout: Layout) -> str | None:
    """The reason why `gluon_gradient` does not take a call on its GPU, or None.

    It takes what the resident kernels take.
    """
    if resident_tile(groups, layout, gradient=True) is not None:
        return None
    if layout.dtype != torch.float16:
        return "float32 products take three steps of tf32"
    if layout.padded_dim > TILE.depth:
        return f"the tile of nouns is resident for D up to {TILE.depth}, got {layout.dim}"
    return f"the group tokens do not start at a multiple of {ALIGNMENT} bytes"


def resident_operands(nouns: Tensor, groups: Tensor, tile: GroundingTile) -> tuple[Any, Any]:
    """Descriptors of the prepared nouns and group tokens, for tiles of full depth.

    The depth of a block is a power of two; columns beyond the matrix are read as 0.
    """
    dim = nouns.shape[1]
    depth = power_of_two(dim)
    return (
        descriptor(nouns, [tile.rows, depth]),
        descriptor(groups.view(-1, dim), [tile.columns, depth]),
    )


@triton.jit
def resident_scores_kernel(
    nouns,
    groups,
    weights,
    beta,
    scores,
    captions,
    videos,
    column_tiles,
    strips,
    strip,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Scores of the captions of one row tile with the videos of a strip of column tiles."""
    tl.static_assert(nouns.block_shape[1] >= D, "a tile has the full depth")
    TILE_VIDEOS: tl.constexpr = BLOCK_N // PADDED_G
    row_tile = tl.program_id(0) // strips
    first = tl.program_id(0) % strips * strip
    stop = tl.minimum(first + strip, column_tiles)
    slope = slope_of(load_beta(beta))
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    weight = tl.load(weights + row, mask=row < captions * PADDED_K, other=0.0)
    first_caption = row_tile * (BLOCK_M // PADDED_K)
    noun = nouns.load([row_tile * BLOCK_M, 0])
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    exponent = dots
    end = stop + 1
    for tile in tl.range(first, end):
        dots = tl.dot(noun, groups.load([tile * BLOCK_N, 0]).T, dots)
        # Both branches are always taken. Triton lets a product run on until a branch uses it; what
        # precedes that branch stays behind the start of the product in a branch of its own.
        if tile < end:
            if tile > first:
                store_scores(
                    exponent,
                    slope,
                    weight,
                    scores,
                    first_caption,
                    (tile - 1) * TILE_VIDEOS,
                    captions,
                    videos,
                    G,
                    PADDED_G,
                    PADDED_K,
                )
            if end > tile:
                exponent = dots * slope
            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)


@triton.jit
def resident_gradient_kernel(
    nouns,
    groups,
    weights,
    beta,
    scores,
    scale,
    lse,
    largest_upstream,
    gradient,
    partial_beta,
    partial_scale,
    captions,
    first_video,
    chunk_videos,
    column_tiles,
    strips,
    strip,
    first_partial,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOSS: tl.constexpr,
    HALF: tl.constexpr,
    WRITE: tl.constexpr,
    NEED_BETA: tl.constexpr,
    NEED_SCALE: tl.constexpr,
):
    """`dots_gradient_kernel` for one row tile and a strip of column tiles of a chunk of videos."""
    tl.static_assert(nouns.block_shape[1] >= D, "a tile has the full depth")
    TILE_VIDEOS: tl.constexpr = BLOCK_N // PADDED_G
    row_start = tl.program_id(0) // strips * BLOCK_M
    first = tl.program_id(0) % strips * strip
    stop = tl.minimum(first + strip, column_tiles)
    first_column = first_video * PADDED_G
    stop_video = first_video + chunk_videos
    sharpness = load_beta(beta)
    slope = slope_of(sharpness)
    multiplier = gradient_scale(sharpness, largest_upstream, LOSS, HALF)
    row = row_start + tl.arange(0, BLOCK_M)
    caption, weight, column_lse, counted = load_row(weights, lse, row, captions, PADDED_K, LOSS)
    weight *= multiplier
    factor = logit_factor(scale) if LOSS else 0.0
    in_tile = tl.arange(0, TILE_VIDEOS)
    noun = nouns.load([row_start, 0])
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    exponent = dots
    pair = tl.zeros((BLOCK_M, TILE_VIDEOS), dtype=tl.float32)
    row_lse = pair
    beta_terms = tl.zeros((BLOCK_M // 16, 8, 8), dtype=tl.float32)
    scale_terms = tl.zeros((BLOCK_M, TILE_VIDEOS), dtype=tl.float32)
    end = stop + 1
    for tile in tl.range(first, end):
        dots = tl.dot(noun, groups.load([first_column + tile * BLOCK_N, 0]).T, dots)
        # Both branches are always taken, as above.
        if tile < end:
            # For the next step, so that no step waits for its loads.
            video = first_video + tile * TILE_VIDEOS + in_tile
            loaded = load_pairs(scores, lse, caption, video, stop_video, captions, LOSS)
            if tile > first:
                beta_terms, scale_terms = _gradient_step(
                    exponent,
                    pair,
                    row_lse,
                    column_lse,
                    factor,
                    caption,
                    counted,
                    weight,
                    video - TILE_VIDEOS,
                    stop_video,
                    gradient,
                    row_start,
                    (tile - 1) * BLOCK_N,
                    beta_terms,
                    scale_terms,
                    G,
                    PADDED_G,
                    LOSS,
                    WRITE,
                    NEED_BETA,
                    NEED_SCALE,
                )
            pair, row_lse = loaded
            if end > tile:
                exponent = dots * slope
            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    at = first_partial + tl.program_id(0)
    if NEED_BETA:
        total = tl.sum(tl.reshape(beta_terms, (BLOCK_M * 4,)), 0)
        tl.store(partial_beta + at, total / multiplier / slope / slope)
    if NEED_SCALE:
        # A caption has PADDED_K rows.
        once = tl.where((row % PADDED_K == 0)[:, None], scale_terms, 0.0)
        tl.store(partial_scale + at, tl.sum(tl.sum(once, 1), 0))


@triton.jit
def _gradient_step(
    exponent,
    pair,
    row_lse,
    column_lse,
    factor,
    caption,
    counted,
    weight,
    video,
    stop_video,
    gradient,
    row_start,
    column_start,
    beta_terms,
    scale_terms,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    LOSS: tl.constexpr,
    WRITE: tl.constexpr,
    NEED_BETA: tl.constexpr,
    NEED_SCALE: tl.constexpr,
):
    """Write the gradient of one tile; add to the terms of the gradients of beta and scale."""
    upstream = pair_upstream(
        pair, row_lse, column_lse, factor, caption, counted, video, stop_video, LOSS
    )
    if NEED_SCALE:
        scale_terms += upstream * pair
    # In halves: fewer registers, and a smaller buffer for the store.
    exponents = halves(exponent)
    upstreams = halves(upstream * weight)
    for half in tl.static_range(2):
        values, terms = dots_gradient(exponents[half], upstreams[half], G, PADDED_G)
        if NEED_BETA:
            beta_terms += terms
        if WRITE:
            at = column_start + half * values.shape[1]
            gradient.store([row_start, at], values.to(gradient.dtype))
    return beta_terms, scale_terms
