"""Forward kernels of grounding: the copy of the inputs, and the scores of all pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import launch, strip_tiles
from svilm_fast.kernels.primitives import tile_position

from .layout import Layout, forward_tile, needs_copy
from .resident import resident_operands, resident_scores_kernel, resident_tile
from .tiles import load_beta, slope_of, store_scores, tile_dots

COPY_ROWS = 64
# Row tiles that share their columns in the L2 cache.
TILE_GROUP = 8


@triton.jit
def prepare_kernel(
    groups,
    nouns,
    noun_mask,
    groups_copy,
    nouns_copy,
    weights,
    valid,
    groups_stride_video,
    groups_stride_group,
    groups_stride_dim,
    nouns_stride_caption,
    nouns_stride_noun,
    nouns_stride_dim,
    mask_stride_caption,
    mask_stride_noun,
    videos,
    captions,
    group_programs,
    G: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Cast and pad both inputs, zero absent nouns, and write noun weights and valid captions."""
    column_blocks: tl.constexpr = PADDED_D // BLOCK_D
    pid = tl.program_id(0) // column_blocks
    column_block = tl.program_id(0) % column_blocks
    columns = column_block * BLOCK_D + tl.arange(0, BLOCK_D)
    if pid < group_programs:
        rows = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        video = rows // PADDED_G
        group = rows % PADDED_G
        inside = video < videos
        source = groups + video * groups_stride_video + group * groups_stride_group
        mask = (inside & (group < G))[:, None] & (columns < D)[None, :]
        offsets = columns.to(tl.int64)[None, :] * groups_stride_dim
        values = tl.load(source[:, None] + offsets, mask=mask, other=0.0)
        target = groups_copy + rows[:, None] * PADDED_D + columns[None, :]
        tl.store(target, values.to(groups_copy.dtype.element_ty), mask=inside[:, None])
    else:
        rows = (pid - group_programs).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        caption = rows // PADDED_K
        noun = rows % PADDED_K
        inside = caption < captions
        mask_at = noun_mask + caption * mask_stride_caption + noun * mask_stride_noun
        present = tl.load(mask_at, mask=inside & (noun < K), other=0).to(tl.float32)
        if column_block == 0:
            count = tl.sum(tl.reshape(present, (BLOCK // PADDED_K, PADDED_K)), 1)
            # w_jk = mask_jk / sum_k mask_jk
            share = 1.0 / tl.maximum(count, 1.0)
            shares = tl.broadcast_to(share[:, None], (BLOCK // PADDED_K, PADDED_K))
            tl.store(weights + rows, present * tl.reshape(shares, (BLOCK,)), mask=inside)
            first = (pid - group_programs).to(tl.int64) * (BLOCK // PADDED_K)
            here = first + tl.arange(0, BLOCK // PADDED_K)
            tl.store(valid + here, (count > 0).to(tl.int8), mask=here < captions)
        source = nouns + caption * nouns_stride_caption + noun * nouns_stride_noun
        mask = (present > 0)[:, None] & (columns < D)[None, :]
        offsets = columns.to(tl.int64)[None, :] * nouns_stride_dim
        values = tl.load(source[:, None] + offsets, mask=mask, other=0.0)
        target = nouns_copy + rows[:, None] * PADDED_D + columns[None, :]
        tl.store(target, values.to(nouns_copy.dtype.element_ty), mask=inside[:, None])


@triton.jit
def scores_kernel(
    nouns,
    groups,
    weights,
    beta,
    scores,
    captions,
    videos,
    row_tiles,
    column_tiles,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of BLOCK_M / PADDED_K captions with BLOCK_N / PADDED_G videos."""
    row_tile, column_tile = tile_position(row_tiles, column_tiles, TILE_GROUP)
    first_row = row_tile * BLOCK_M
    dots = tile_dots(
        nouns,
        groups,
        first_row,
        column_tile * BLOCK_N,
        captions * PADDED_K,
        videos * PADDED_G,
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
    )
    slope = slope_of(load_beta(beta))
    rows = first_row + tl.arange(0, BLOCK_M)
    weight = tl.load(weights + rows, mask=rows < captions * PADDED_K, other=0.0)
    store_scores(
        dots * slope,
        slope,
        weight[:, None],
        scores,
        row_tile * (BLOCK_M // PADDED_K),
        column_tile * (BLOCK_N // PADDED_G),
        captions,
        videos,
        G,
        PADDED_G,
        PADDED_K,
    )


def prepare(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, layout: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel buffers of the inputs: groups, nouns, weights [c, padded K], valid [c].

    The first result is empty if the group tokens need no copy.
    """
    copy = needs_copy(groups, layout)
    rows = layout.videos * layout.padded_groups if copy else 0
    shape = (rows, layout.padded_dim)
    groups_copy = torch.empty(shape, dtype=layout.dtype, device=groups.device)
    nouns_copy = groups.new_empty((layout.rows, layout.padded_dim), dtype=layout.dtype)
    weights = groups.new_empty((layout.captions, layout.padded_nouns), dtype=torch.float32)
    valid = groups.new_empty((layout.captions,), dtype=torch.int8)
    group_programs = -(-rows // COPY_ROWS)
    block_dim = min(64, layout.padded_dim)
    programs = group_programs + -(-layout.rows // COPY_ROWS)
    launch(
        prepare_kernel,
        (programs * (layout.padded_dim // block_dim),),
        groups,
        nouns,
        noun_mask,
        groups_copy,
        nouns_copy,
        weights,
        valid,
        *groups.stride(),
        *nouns.stride(),
        *noun_mask.stride(),
        layout.videos,
        layout.captions,
        group_programs,
        G=layout.num_groups,
        K=layout.num_nouns,
        D=layout.dim,
        PADDED_G=layout.padded_groups,
        PADDED_K=layout.padded_nouns,
        PADDED_D=layout.padded_dim,
        BLOCK=COPY_ROWS,
        BLOCK_D=block_dim,
        num_warps=4,
    )
    return groups_copy, nouns_copy, weights, valid


def precision_of(layout: Layout) -> str:
    """Precision of the products: three tf32 products reach float32's accuracy on tensor cores."""
    return "tf32x3" if layout.dtype == torch.float32 else "ieee"


def launch_scores(
    groups: Tensor, nouns: Tensor, weights: Tensor, beta: Tensor, layout: Layout
) -> Tensor:
    """Scores [videos, captions] in float32, from prepared buffers."""
    scores = groups.new_empty((layout.videos, layout.captions), dtype=torch.float32)
    device = traits(groups.device)
    resident = resident_tile(groups, layout, gradient=False)
    tile = resident or forward_tile(layout, device.capability)
    row_tiles = -(-layout.rows // tile.rows)
    column_tiles = -(-layout.videos * layout.padded_groups // tile.columns)
    sizes = {"G": layout.num_groups, "PADDED_G": layout.padded_groups}
    sizes |= {"PADDED_K": layout.padded_nouns, "D": layout.padded_dim}
    sizes |= {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if resident is not None:
        strip = strip_tiles(row_tiles, column_tiles, device.sm_count)
        strips = -(-column_tiles // strip)
        launch(
            resident_scores_kernel,
            (row_tiles * strips,),
            *resident_operands(nouns, groups, tile),
            weights,
            beta,
            scores,
            layout.captions,
            layout.videos,
            column_tiles,
            strips,
            strip,
            **sizes,
            **options,
        )
        return scores
    launch(
        scores_kernel,
        (row_tiles * column_tiles,),
        nouns,
        groups,
        weights,
        beta,
        scores,
        layout.captions,
        layout.videos,
        row_tiles,
        column_tiles,
        BLOCK_K=tile.depth,
        TILE_GROUP=TILE_GROUP,
        PRECISION=precision_of(layout),
        **sizes,
        **options,
    )
    return scores
