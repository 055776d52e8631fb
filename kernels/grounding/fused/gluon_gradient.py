"""The gradient of the dot products on sm_90, in Gluon, with roles for the warps.

One warp copies (TMA). Two warp groups share a tile of nouns, 64 rows each, and take turns: while
one computes the gradient of its last tile, the other has the tensor cores. The nouns stay in shared
memory for a whole strip of column tiles. The results are those of
`resident.resident_gradient_kernel`, up to rounding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from svilm_fast.kernels.launch import descriptor, launch

from .finish import gradient_scale
from .gluon_tiles import sum_in_threads, term_layout, tile_gradient, tile_layout
from .matrix import logit_factor
from .tiles import load_beta, pair_upstream, slope_of

# A stage of the ring has the largest depth of these that divides D: fewer stages, fewer waits.
DEPTHS = (128, 64, 32, 16)
# Depth of all stages together: two tiles of the widest nouns.
RING_DEPTH = 512
MAX_STAGES = 8
# Rows of a warp group, which are those of one product of it.
GROUP_ROWS = 64
# Partial sums of a program: one per warp group.
PARTIAL_SUMS = 2
# Registers of a thread that computes. Three warp groups share 65,536: 2 x 128 x 240 + 128 x 24.
GRADIENT_REGISTERS = 240
COPY_REGISTERS = 24
MEAN_REGISTERS = (2 * GRADIENT_REGISTERS + COPY_REGISTERS) // 3


@gluon.jit
def copy_partition(
    operands,
    buffers,
    barriers,
    places,
    BLOCK_K: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the tile of nouns once, and the group tokens of every tile through the ring."""
    nouns, groups = operands
    noun_tile, ring, _ = buffers
    nouns_filled, filled, freed, _ = barriers
    row_start, first_column, first, stop = places
    ROWS: gl.constexpr = nouns.block_type.shape[0]
    COLUMNS: gl.constexpr = groups.block_type.shape[0]
    for tile in range(first, stop):
        for step in gl.static_range(STEPS):
            # The first product starts as soon as the first slice of the nouns has arrived.
            mbarrier.expect(
                nouns_filled.index(step), 2 * nouns.block_type.nbytes, pred=tile == first
            )
            for group in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    nouns,
                    [row_start + group * ROWS, step * BLOCK_K],
                    nouns_filled.index(step),
                    noun_tile.index(2 * step + group),
                    pred=tile == first,
                )
            copy = (tile - first) * STEPS + step
            stage = copy % STAGES
            # Stages count as freed before their first use: the phase before the first is complete.
            mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)
            mbarrier.expect(filled.index(stage), groups.block_type.nbytes)
            tma.async_copy_global_to_shared(
                groups,
                [first_column + tile * COLUMNS, step * BLOCK_K],
                filled.index(stage),
                ring.index(stage),
            )


@gluon.jit
def gradient_partition(
    call,
    GROUP: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    G: gl.constexpr,
    PADDED_G: gl.constexpr,
    PADDED_K: gl.constexpr,
    LOSS: gl.constexpr,
    WRITE: gl.constexpr,
    NEED_BETA: gl.constexpr,
    NEED_SCALE: gl.constexpr,
):
    """Multiply ROWS rows with the group tokens of every tile and write the gradients."""
    buffers, barriers, places, bounds, factors, sources, targets = call
    noun_tile, ring, results = buffers
    nouns_filled, filled, freed, turns = barriers
    row_start, _, first, stop = places
    captions, first_video, stop_video = bounds
    slope, multiplier, factor = factors
    weights, scores, lse = sources
    gradient, partial_beta, partial_scale = targets
    VIDEOS: gl.constexpr = BLOCK_N // PADDED_G
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    by_video: gl.constexpr = tile_layout(VIDEOS, PADDED_G)
    pairs: gl.constexpr = gl.SliceLayout(2, by_video)
    row = row_start + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, pairs))
    caption = row // PADDED_K
    counted = caption < captions
    weight = gl.load(weights + row, mask=counted, other=0.0) * multiplier
    column_lse = weight
    if LOSS:
        column_lse = gl.load(lse + captions + caption, mask=counted, other=0.0)
        # A row counts if its caption has a noun.
        total = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, pairs))
        for noun in range(PADDED_K):
            total += gl.load(weights + caption * PADDED_K + noun, mask=counted, other=0.0)
        counted = counted & (total > 0.0)
    beta_terms = gl.zeros([ROWS // 16, 8, 8], gl.float32, layout=term_layout())
    scale_terms = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, pairs))
    for tile in range(first, stop):
        number = tile - first
        # Scores (or their gradient) and log sums arrive during the product.
        video = first_video + tile * VIDEOS + gl.arange(0, VIDEOS, layout=gl.SliceLayout(0, pairs))
        inside = (caption < captions)[:, None] & (video < stop_video)[None, :]
        at = gl.cast(video, gl.int64)[None, :] * captions + caption[:, None]
        pair = gl.load(scores + at, mask=inside, other=0.0)
        row_lse = pair
        if LOSS:
            row_lse = gl.load(lse + video, mask=video < stop_video, other=0.0)[None, :]

        # The other group has issued its products; group 0 has the first turn.
        mbarrier.wait(turns.index(GROUP), (number & 1) ^ (1 - GROUP))
        dots = gl.zeros([ROWS, BLOCK_N], gl.float32, layout=layout)
        for step in gl.static_range(STEPS):
            copy = number * STEPS + step
            stage = copy % STAGES
            mbarrier.wait(nouns_filled.index(step), 0, pred=number == 0)
            mbarrier.wait(filled.index(stage), copy // STAGES & 1)
            dots = warpgroup_mma(
                noun_tile.index(2 * step + GROUP),
                ring.index(stage).permute((1, 0)),
                dots,
                use_acc=step > 0,
                is_async=True,
            )
            if step > 0:
                # The product of the step before has read its stage.
                dots = warpgroup_mma_wait(1, deps=(dots,))
                mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)
        mbarrier.arrive(turns.index(1 - GROUP), count=1)
        dots = warpgroup_mma_wait(0, deps=(dots,))
        mbarrier.arrive(freed.index((number * STEPS + STEPS - 1) % STAGES), count=1)

        upstream = pair_upstream(
            pair,
            row_lse,
            column_lse[:, None],
            factor,
            caption[:, None],
            counted[:, None],
            video,
            stop_video,
            LOSS,
        )
        if NEED_SCALE:
            scale_terms += gl.sum(upstream * pair, 1)
        values, moments = tile_gradient(
            dots, slope, upstream * weight[:, None], G, PADDED_G, by_video
        )
        if NEED_BETA:
            beta_terms += sum_in_threads(moments)
        if WRITE:
            result = results.index(GROUP)
            # The store of the tile before has read the buffer.
            tma.store_wait(0)
            result.store(gl.cast(values, gradient.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                gradient, [row_start + GROUP * ROWS, tile * BLOCK_N], result
            )
    if NEED_BETA:
        total_beta = gl.sum(gl.sum(gl.sum(beta_terms, 2), 1), 0)
        gl.store(partial_beta + GROUP, total_beta / multiplier / slope / slope)
    if NEED_SCALE:
        # A caption has PADDED_K rows.
        once = gl.where(row % PADDED_K == 0, scale_terms, 0.0)
        gl.store(partial_scale + GROUP, gl.sum(once, 0))
    if WRITE:
        tma.store_wait(0)


@gluon.jit(
    do_not_specialize=[
        "first_video",
        "chunk_videos",
        "column_tiles",
        "strips",
        "strip",
        "first_partial",
    ]
)
def gluon_gradient_kernel(
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
    G: gl.constexpr,
    PADDED_G: gl.constexpr,
    PADDED_K: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    LOSS: gl.constexpr,
    HALF: gl.constexpr,
    WRITE: gl.constexpr,
    NEED_BETA: gl.constexpr,
    NEED_SCALE: gl.constexpr,
    REGISTERS_TO_COMPUTE: gl.constexpr,
    REGISTERS_TO_COPY: gl.constexpr,
):
    """`resident_gradient_kernel` with roles; every program writes two partial sums of a kind.

    `nouns` and `groups` are descriptors of blocks [64, BLOCK_K] and [BLOCK_N, BLOCK_K], of which
    STEPS cover D; `gradient` of blocks [64, BLOCK_N].
    """
    gl.static_assert(STAGES >= STEPS, "a group needs all steps of a tile in its turn")
    ROWS: gl.constexpr = nouns.block_type.shape[0]
    pid = gl.program_id(0)
    first = pid % strips * strip
    stop = gl.minimum(first + strip, column_tiles)
    sharpness = load_beta(beta)
    slope = slope_of(sharpness)
    multiplier = gradient_scale(sharpness, largest_upstream, LOSS, HALF)
    factor = 0.0
    if LOSS:
        factor = logit_factor(scale)

    noun_tile = gl.allocate_shared_memory(nouns.dtype, [2 * STEPS, ROWS, BLOCK_K], nouns.layout)
    ring = gl.allocate_shared_memory(groups.dtype, [STAGES, BLOCK_N, BLOCK_K], groups.layout)
    results = noun_tile
    if WRITE:
        results = gl.allocate_shared_memory(gradient.dtype, [2, ROWS, BLOCK_N], gradient.layout)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    nouns_filled = gl.allocate_shared_memory(gl.int64, [STEPS, 1], barrier)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    for step in gl.static_range(STEPS):
        mbarrier.init(nouns_filled.index(step), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        # Both groups read every stage.
        mbarrier.init(freed.index(stage), count=2)
    for group in gl.static_range(2):
        mbarrier.init(turns.index(group), count=1)

    buffers = (noun_tile, ring, results)
    barriers = (nouns_filled, filled, freed, turns)
    places = (pid // strips * 2 * ROWS, first_video * PADDED_G, first, stop)
    call = (
        buffers,
        barriers,
        places,
        (captions, first_video, first_video + chunk_videos),
        (slope, multiplier, factor),
        (weights, scores, lse),
        (
            gradient,
            partial_beta + 2 * (first_partial + pid),
            partial_scale + 2 * (first_partial + pid),
        ),
    )
    gl.warp_specialize(
        [
            (
                gradient_partition,
                (
                    call, 0, ROWS, BLOCK_N, STEPS, STAGES, G, PADDED_G, PADDED_K,
                    LOSS, WRITE, NEED_BETA, NEED_SCALE,
                ),
            ),
            (
                gradient_partition,
                (
                    call, 1, ROWS, BLOCK_N, STEPS, STAGES, G, PADDED_G, PADDED_K,
                    LOSS, WRITE, NEED_BETA, NEED_SCALE,
                ),
            ),
            (
                copy_partition,
                ((nouns, groups), buffers, barriers, places, BLOCK_K, STEPS, STAGES),
            ),
        ],
        [4, 1],
        [REGISTERS_TO_COMPUTE, REGISTERS_TO_COPY],
    )  # fmt: skip


def ring_of(dim: int) -> tuple[int, int]:
    """Depth and number of the stages of the ring for a padded D."""
    depth = next(each for each in DEPTHS if dim % each == 0)
    return depth, min(RING_DEPTH // depth, MAX_STAGES)


def launch_gradient(
    nouns: Tensor,
    groups: Tensor,
    shared: tuple[Tensor | None, ...],
    target: Tensor | None,
    partials: tuple[Tensor, Tensor],
    sizes: tuple[int, ...],
    grid: int,
    columns: int,
    **options: Any,
) -> None:
    """Write the gradient of the dot products of a chunk of videos, and two partial sums a program.

    Arguments as of `resident.resident_gradient_kernel`: `shared` from `weights` to
    `largest_upstream`, `sizes` from `captions` to `first_partial`, `options` its constants that
    both kernels have. A program takes 128 rows and tiles of `columns` columns.
    """
    dim = nouns.shape[1]
    depth, stages = ring_of(dim)
    launch(
        gluon_gradient_kernel,
        (grid,),
        _blocks(nouns, GROUP_ROWS, depth),
        _blocks(groups.view(-1, dim), columns, depth),
        *shared,
        None if target is None else _blocks(target, GROUP_ROWS, columns),
        *partials,
        *sizes,
        **options,
        BLOCK_N=columns,
        BLOCK_K=depth,
        STEPS=-(-dim // depth),
        STAGES=stages,
        REGISTERS_TO_COMPUTE=GRADIENT_REGISTERS,
        REGISTERS_TO_COPY=COPY_REGISTERS,
        num_warps=4,
        maxnreg=MEAN_REGISTERS,
    )


def _blocks(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    dense = descriptor(matrix, [rows, columns])
    layout = gl.NVMMASharedLayout.get_default_for(dense.block_shape, gl.float16)
    return TensorDescriptor(dense.base, dense.shape, dense.strides, dense.block_shape, layout)
