"""Backward of grounding: per chunk, the gradient of the dot products, two products, the finish."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.backend import gluon_wanted, say_once
from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import descriptor, launch, strip_tiles
from svilm_fast.kernels.primitives import accumulate_product, tile_position

from .finish import FINISH_ROWS, finish_kernel, gradient_scale, largest_magnitude
from .forward import TILE_GROUP, precision_of
from .layout import Layout, backward_tile
from .matrix import MatrixStatistics, logit_factor
from .resident import (
    gluon_obstacle,
    resident_gradient_kernel,
    resident_operands,
    resident_tile,
)
from .tiles import (
    dots_gradient,
    load_beta,
    load_pairs,
    load_row,
    pair_upstream,
    slope_of,
    tile_dots,
)


class ForwardBuffers(NamedTuple):
    """Buffers that `forward.prepare` wrote and backward reads."""

    groups: Tensor
    nouns: Tensor
    weights: Tensor


class LossContext(NamedTuple):
    """The tensors from which a tile computes the gradient of the loss by its scores."""

    scores: Tensor
    scale: Tensor
    statistics: MatrixStatistics


class Needs(NamedTuple):
    """Which gradients are needed."""

    groups: bool
    nouns: bool
    beta: bool
    scale: bool = False


@triton.jit
def dots_gradient_kernel(
    nouns,
    groups,
    weights,
    beta,
    scores,
    scale,
    lse,
    largest_upstream,
    out,
    partial_beta,
    partial_scale,
    captions,
    videos,
    first_video,
    chunk_videos,
    row_tiles,
    column_tiles,
    first_partial,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    LOSS: tl.constexpr,
    HALF: tl.constexpr,
    WRITE: tl.constexpr,
    NEED_BETA: tl.constexpr,
    NEED_SCALE: tl.constexpr,
):
    """Gradient of one tile of dot products of a chunk of videos, times `gradient_scale`.

    With LOSS, the kernel computes the upstream gradient from `scores`, up to a constant factor.
    Without LOSS, `scores` holds the upstream gradient.
    """
    TILE_VIDEOS: tl.constexpr = BLOCK_N // PADDED_G
    row_tile, column_tile = tile_position(row_tiles, column_tiles, TILE_GROUP)
    first_row = row_tile * BLOCK_M
    dots = tile_dots(
        nouns,
        groups,
        first_row,
        first_video * PADDED_G + column_tile * BLOCK_N,
        captions * PADDED_K,
        videos * PADDED_G,
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
    )
    sharpness = load_beta(beta)
    slope = slope_of(sharpness)
    multiplier = gradient_scale(sharpness, largest_upstream, LOSS, HALF)
    rows = first_row + tl.arange(0, BLOCK_M)
    caption, weight, column_lse, counted = load_row(weights, lse, rows, captions, PADDED_K, LOSS)
    video = first_video + column_tile * TILE_VIDEOS + tl.arange(0, TILE_VIDEOS)
    stop_video = first_video + chunk_videos
    pair, row_lse = load_pairs(scores, lse, caption, video, stop_video, captions, LOSS)
    factor = logit_factor(scale) if LOSS else 0.0
    upstream = pair_upstream(
        pair, row_lse, column_lse, factor, caption, counted, video, stop_video, LOSS
    )
    if NEED_SCALE:
        # A caption has PADDED_K rows.
        once = tl.where((rows % PADDED_K == 0)[:, None], upstream * pair, 0.0)
        tl.store(partial_scale + first_partial + tl.program_id(0), tl.sum(tl.sum(once, 1), 0))
    weighted = upstream * (weight * multiplier)
    gradient, terms = dots_gradient(dots * slope, weighted, G, PADDED_G)
    if NEED_BETA:
        part = tl.sum(tl.reshape(terms, (BLOCK_M * 4,)), 0) / multiplier / slope / slope
        tl.store(partial_beta + first_partial + tl.program_id(0), part)
    if WRITE:
        columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        width = chunk_videos * PADDED_G
        target = out + rows.to(tl.int64)[:, None] * width + columns[None, :]
        inside = (rows < captions * PADDED_K)[:, None] & (columns < width)[None, :]
        tl.store(target, gradient.to(out.dtype.element_ty), mask=inside)


def split_of(rows: int, depth: int, width: int, sm_count: int) -> int:
    """The number of parts of the sum of the noun gradient, so that its tiles fill the GPU."""
    tiles = -(-rows // 128) * -(-width // 128)
    split = 1
    while split < 8 and tiles * split < sm_count and depth % (split * 2 * 64) == 0:
        split *= 2
    return split


class GroundingGradients(NamedTuple):
    """Gradients of the inputs; empty tensors for those that are not needed."""

    groups: Tensor
    nouns: Tensor
    beta: Tensor
    scale: Tensor


def backward(
    prepared: ForwardBuffers,
    beta: Tensor,
    layout: Layout,
    needs: Needs,
    dtype: torch.dtype,
    upstream: Tensor,
    workspace_bytes: int,
    loss: LossContext | None = None,
) -> GroundingGradients:
    """Gradients of the scores, or of the loss if `loss` is given.

    `upstream` is the contiguous float32 gradient [videos, captions] of the scores, or the 0-dim
    gradient of the loss.
    """
    groups, nouns = prepared.groups, prepared.nouns
    device = traits(groups.device)
    resident = resident_tile(groups, layout, gradient=True)
    tile = resident or backward_tile(layout, device.capability, needs.beta)
    gluon = gluon_wanted(groups.device)
    if gluon and (reason := gluon_obstacle(groups, layout)) is not None:
        say_once("grounding", "plain kernels instead of Gluon", reason)
        gluon = False
    write = needs.groups or needs.nouns
    chunk = layout.videos_per_chunk(workspace_bytes, tile.columns) if write else layout.videos
    row_tiles = -(-layout.rows // tile.rows)
    starts = range(0, layout.videos, chunk)

    def programs(videos: int) -> tuple[int, int, int]:
        """Programs of a chunk of videos, its column tiles, and how many of these a program has."""
        column_tiles = -(-videos * layout.padded_groups // tile.columns)
        strip = strip_tiles(row_tiles, column_tiles, device.sm_count) if resident else 1
        return row_tiles * -(-column_tiles // strip), column_tiles, strip

    programs_per_chunk = programs(chunk)[0]
    partials = (len(starts) - 1) * programs_per_chunk + programs(layout.videos - starts[-1])[0]
    if gluon:
        from .gluon_gradient import PARTIAL_SUMS, launch_gradient

        partials *= PARTIAL_SUMS

    half = layout.dtype == torch.float16
    largest = largest_magnitude(upstream) if loss is None and half and write else None
    partial_beta = groups.new_empty((partials if needs.beta else 0,), dtype=torch.float32)
    partial_scale = groups.new_empty((partials if needs.scale else 0,), dtype=torch.float32)
    width, dim = chunk * layout.padded_groups, layout.padded_dim
    block_dim = min(64, dim)
    buffer = groups.new_empty((layout.rows * width if write else 0,))
    groups_sum = groups.new_empty((width if needs.groups else 0, dim), dtype=torch.float32)
    single_chunk = len(starts) == 1
    split = split_of(layout.rows, width, dim, device.sm_count) if single_chunk else 1
    nouns_shape = (split, layout.rows if needs.nouns else 0, dim)
    nouns_sum = groups.new_empty(nouns_shape, dtype=torch.float32)

    sizes = (layout.videos, layout.num_groups, layout.dim)
    gradients = GroundingGradients(
        groups=groups.new_empty(sizes if needs.groups else (0,), dtype=dtype),
        nouns=groups.new_empty(
            (layout.captions, layout.num_nouns, layout.dim) if needs.nouns else (0,), dtype=dtype
        ),
        beta=beta.new_empty(() if needs.beta else (0,)),
        scale=beta.new_empty((0,)) if loss is None else _scale_gradient(loss, needs),
    )
    for number, start in enumerate(starts):
        videos = min(chunk, layout.videos - start)
        width = videos * layout.padded_groups
        count, column_tiles, strip = programs(videos)
        target = buffer[: layout.rows * width if write else 0].view(-1, width)
        shared = (
            prepared.weights,
            beta,
            upstream if loss is None else loss.scores,
            None if loss is None else loss.scale,
            None if loss is None else loss.statistics.lse,
            largest,
        )
        options = {
            "G": layout.num_groups,
            "PADDED_G": layout.padded_groups,
            "PADDED_K": layout.padded_nouns,
            "LOSS": loss is not None,
            "HALF": half and write,
            "WRITE": write,
            "NEED_BETA": needs.beta,
            "NEED_SCALE": needs.scale,
        }
        tiling = {
            "D": dim,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }
        strips = (
            layout.captions,
            start,
            videos,
            column_tiles,
            -(-column_tiles // strip),
            strip,
            number * programs_per_chunk,
        )
        sums = partial_beta, partial_scale
        if gluon:
            matrix = target if write else None
            launch_gradient(
                nouns, groups, shared, matrix, sums, strips, count, tile.columns, **options
            )
        elif resident is not None:
            launch(
                resident_gradient_kernel,
                (count,),
                *resident_operands(nouns, groups, tile),
                *shared,
                descriptor(target, [tile.rows, tile.columns // 2]) if write else None,
                *sums,
                *strips,
                **options,
                **tiling,
            )
        else:
            launch(
                dots_gradient_kernel,
                (count,),
                nouns,
                groups,
                *shared,
                buffer,
                *sums,
                layout.captions,
                layout.videos,
                start,
                videos,
                row_tiles,
                column_tiles,
                number * programs_per_chunk,
                BLOCK_K=tile.depth,
                TILE_GROUP=TILE_GROUP,
                PRECISION=precision_of(layout),
                **options,
                **tiling,
            )
        tokens = groups[start * layout.padded_groups :][:width]
        if needs.groups:
            accumulate_product(groups_sum[None, :width], target.T[None], nouns[None], first=True)
        if needs.nouns:
            parts = target.view(layout.rows, split, width // split).transpose(0, 1)
            accumulate_product(
                nouns_sum, parts, tokens.view(split, width // split, dim), first=start == 0
            )
        final = start + videos == layout.videos
        group_programs = -(-width // FINISH_ROWS) if needs.groups else 0
        noun_programs = -(-layout.rows // FINISH_ROWS) if needs.nouns and final else 0
        scalar_programs = 1 if final and (needs.beta or needs.scale) else 0
        launch(
            finish_kernel,
            ((group_programs + noun_programs + scalar_programs) * (dim // block_dim),),
            groups_sum,
            nouns_sum,
            gradients.groups[start:] if needs.groups else gradients.groups,
            gradients.nouns,
            gradients.beta,
            gradients.scale,
            partial_beta,
            partial_scale,
            beta,
            None if loss is None else loss.scale,
            None if loss is None else loss.statistics.pairs,
            None if loss is None else upstream,
            largest,
            width,
            layout.rows,
            split,
            partials,
            group_programs,
            noun_programs,
            G=layout.num_groups,
            K=layout.num_nouns,
            D=layout.dim,
            PADDED_G=layout.padded_groups,
            PADDED_K=layout.padded_nouns,
            PADDED_D=dim,
            BLOCK=FINISH_ROWS,
            BLOCK_D=block_dim,
            LOSS=loss is not None,
            HALF=half and write,
            NEED_BETA=needs.beta,
            NEED_SCALE=needs.scale,
            SUM_BLOCK=1024,
            num_warps=4,
        )
    return gradients


def _scale_gradient(loss: LossContext, needs: Needs) -> Tensor:
    return loss.scale.new_empty(() if needs.scale else (0,))
