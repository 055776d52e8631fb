"""The roles of `gluon_backward` that multiply with dlogit and A of a tile."""
# Triton does not support unpacking, so its tuples grow by addition in unrolled loops.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated, misc"

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .tiles import quad_order


@gluon.jit
def write_token_gradient(
    d_tokens,
    buffers,
    barriers,
    places,
    scale,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
):
    """The gradient of the tokens of every tile, a slice of columns after the other."""
    held, d_logits, shares, results = buffers
    computed, used = barriers
    sample, first, tiles = places
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_C, 16])
    for tile in range(tiles):
        mbarrier.wait(computed, tile & 1)
        for part in range(SLICES):
            # Whoever computed dlogit has waited for queries and h.
            rows = held.index(part).reshape([2 * BLOCK_G, BLOCK_C])
            # dx_l = sum_g (A_lg h_g + dlogit_lg q_g)
            d_x = gl.zeros([BLOCK_L, BLOCK_C], gl.float32, layout=layout)
            d_x = warpgroup_mma(d_logits, rows.slice(0, BLOCK_G), d_x, use_acc=False, is_async=True)
            d_x = warpgroup_mma(shares, rows.slice(BLOCK_G, BLOCK_G), d_x, is_async=True)
            d_x = warpgroup_mma_wait(0, deps=(d_x,))
            mbarrier.arrive(used, count=1, pred=part == SLICES - 1)
            result = results.index((tile * SLICES + part) % 2)
            # The store before the last one has read its buffer.
            tma.store_wait(1)
            result.reshape([BLOCK_L, BLOCK_C]).store(gl.cast(d_x * scale, d_tokens.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                d_tokens, [sample, first + tile * BLOCK_L, part * BLOCK_C], result
            )
    tma.store_wait(0)


@gluon.jit
def add_query_gradient(
    buffers,
    barriers,
    tiles,
    d_queries,
    scale,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Add up the gradient of the queries; the sums [C, G] stay in registers."""
    ring, d_logits = buffers
    filled, freed, computed, used = barriers
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_G, 16])
    sums = ()
    for _ in gl.static_range(SLICES):
        sums = sums + (gl.zeros([BLOCK_C, BLOCK_G], gl.float32, layout=layout),)
    for tile in range(tiles):
        mbarrier.wait(computed, tile & 1)
        updated = ()
        running = sums[0]
        for part in gl.static_range(SLICES):
            copy = tile * SLICES + part
            stage = copy % STAGES
            mbarrier.wait(filled.index(stage), copy // STAGES & 1)
            before = running
            # dq_g = sum_l dlogit_lg x_l
            running = warpgroup_mma(
                ring.index(stage).reshape([BLOCK_L, BLOCK_C]).permute((1, 0)),
                d_logits,
                sums[part],
                is_async=True,
            )
            if part > 0:
                # The product of the slice before has read its stage.
                updated = updated + (warpgroup_mma_wait(1, deps=(before,)),)
                mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)
        sums = updated + (warpgroup_mma_wait(0, deps=(running,)),)
        mbarrier.arrive(freed.index((tile * SLICES + SLICES - 1) % STAGES), count=1)
        mbarrier.arrive(used, count=1)

    group = quad_order(gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, layout)), BLOCK_G)
    for part in gl.static_range(SLICES):
        column = part * BLOCK_C + gl.arange(0, BLOCK_C, layout=gl.SliceLayout(1, layout))
        mask = (column < WIDTH)[:, None] & (group < GROUPS)[None, :]
        gl.store(
            d_queries + group[None, :] * WIDTH + column[:, None], sums[part] * scale, mask=mask
        )
