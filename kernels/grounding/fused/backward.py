"""Backward of grounding: per chunk, the gradient of the dot products, two products, the finish."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import launch
from svilm_fast.kernels.primitives import accumulate_product, tile_position

from .finish import FINISH_ROWS, finish_kernel, gradient_scale, largest_magnitude
from .forward import (
    TILE_GROUP,
    group_power,
    load_beta,
    precision_of,
    tile_dots,
)
from .layout import Layout, backward_tile
from .matrix import MatrixStatistics, pair_gradient, scaled


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
def total_weight(weights, caption, inside, PADDED_K: tl.constexpr):
    """Sum of a caption's noun weights: 1, or 0 where it has no noun."""
    at = weights + caption[:, None] * PADDED_K + tl.arange(0, PADDED_K)[None, :]
    return tl.sum(tl.load(at, mask=inside[:, None], other=0.0), 1)


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
    dots_gradient,
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
    TILE_CAPTIONS: tl.constexpr = BLOCK_M // PADDED_K
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

    caption = row_tile * TILE_CAPTIONS + tl.arange(0, TILE_CAPTIONS)
    in_chunk = column_tile * TILE_VIDEOS + tl.arange(0, TILE_VIDEOS)
    video = first_video + in_chunk
    inside = (caption < captions)[:, None] & (in_chunk < chunk_videos)[None, :]
    at = scores + video.to(tl.int64)[None, :] * captions + caption[:, None]
    pair = tl.load(at, mask=inside, other=0.0)
    rows = first_row + tl.arange(0, BLOCK_M)
    weight = tl.load(weights + rows, mask=rows < captions * PADDED_K, other=0.0)
    if LOSS:
        # A caption and the row of its video are valid if one of its nouns has a weight.
        video_inside = in_chunk < chunk_videos
        caption_weight = total_weight(weights, caption, caption < captions, PADDED_K)
        video_weight = total_weight(weights, video, video_inside, PADDED_K)
        upstream = pair_gradient(
            scaled(pair, scale),
            tl.load(lse + video, mask=video_inside, other=0.0)[None, :],
            tl.load(lse + captions + caption, mask=caption < captions, other=0.0)[:, None],
            (video_weight > 0.0)[None, :],
            (caption_weight > 0.0)[:, None],
            video[None, :] == caption[:, None],
        )
        upstream = tl.where(inside, upstream, 0.0)
        if NEED_SCALE:
            part = tl.sum(tl.reshape(upstream * pair, (TILE_CAPTIONS * TILE_VIDEOS,)), 0)
            tl.store(partial_scale + first_partial + tl.program_id(0), part)
    else:
        upstream = pair

    multiplier = gradient_scale(sharpness, largest_upstream, LOSS, HALF)
    spread = tl.broadcast_to(upstream[:, None, :], (TILE_CAPTIONS, PADDED_K, TILE_VIDEOS))
    upstream = tl.reshape(spread, (BLOCK_M, TILE_VIDEOS)) * weight[:, None]
    dots = tl.reshape(dots, (BLOCK_M, TILE_VIDEOS, PADDED_G))
    power = group_power(dots, sharpness, G, PADDED_G)
    total = tl.sum(power, 2)
    # r_ijk = sum_m p_m a_m
    similarity = tl.sum(power * dots, 2) / total
    centred = dots - similarity[:, :, None]
    moment = power * centred
    if NEED_BETA:
        # dr/dbeta = sum_m p_m a_m^2 - r^2 = sum_m p_m (a_m - r)^2. The second form has no
        # cancellation: the variance of a sharp softmax is close to 0.
        variance = tl.sum(moment * centred, 2) / total
        part = tl.sum(tl.reshape(upstream * variance, (BLOCK_M * TILE_VIDEOS,)), 0)
        tl.store(partial_beta + first_partial + tl.program_id(0), part)
    if WRITE:
        # dS_ij/da_m = w_jk p_m (1 + beta (a_m - r_ijk))
        gradient = (power + sharpness * moment) * (upstream * multiplier / total)[:, :, None]
        values = tl.reshape(gradient, (BLOCK_M, BLOCK_N)).to(dots_gradient.dtype.element_ty)
        columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        width = chunk_videos * PADDED_G
        target = dots_gradient + rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(
            target, values, mask=(rows < captions * PADDED_K)[:, None] & (columns < width)[None, :]
        )


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
    tile = backward_tile(layout, device.capability, needs.beta)
    write = needs.groups or needs.nouns
    chunk = layout.videos_per_chunk(workspace_bytes, tile.columns) if write else layout.videos
    row_tiles = -(-layout.rows // tile.rows)
    starts = range(0, layout.videos, chunk)
    tiles_per_chunk = row_tiles * -(-chunk * layout.padded_groups // tile.columns)
    last = layout.videos - starts[-1]
    tiles = (len(starts) - 1) * tiles_per_chunk
    tiles += row_tiles * -(-last * layout.padded_groups // tile.columns)

    half = layout.dtype == torch.float16
    largest = largest_magnitude(upstream) if loss is None and half and write else None
    partial_beta = groups.new_empty((tiles if needs.beta else 0,), dtype=torch.float32)
    partial_scale = groups.new_empty((tiles if needs.scale else 0,), dtype=torch.float32)
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
        column_tiles = -(-width // tile.columns)
        launch(
            dots_gradient_kernel,
            (row_tiles * column_tiles,),
            nouns,
            groups,
            prepared.weights,
            beta,
            upstream if loss is None else loss.scores,
            None if loss is None else loss.scale,
            None if loss is None else loss.statistics.lse,
            largest,
            buffer,
            partial_beta,
            partial_scale,
            layout.captions,
            layout.videos,
            start,
            videos,
            row_tiles,
            column_tiles,
            number * tiles_per_chunk,
            G=layout.num_groups,
            PADDED_G=layout.padded_groups,
            PADDED_K=layout.padded_nouns,
            D=dim,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth,
            TILE_GROUP=TILE_GROUP,
            PRECISION=precision_of(layout),
            LOSS=loss is not None,
            HALF=half and write,
            WRITE=write,
            NEED_BETA=needs.beta,
            NEED_SCALE=needs.scale,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        dots_gradient = buffer[: layout.rows * width if write else 0].view(-1, width)
        tokens = groups[start * layout.padded_groups :][:width]
        if needs.groups:
            accumulate_product(
                groups_sum[None, :width], dots_gradient.T[None], nouns[None], first=True
            )
        if needs.nouns:
            parts = dots_gradient.view(layout.rows, split, width // split).transpose(0, 1)
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
            tiles,
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
