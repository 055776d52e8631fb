"""Forward of grouping on sm_90, in Gluon, with roles for the warps.

One warp copies slices of token tiles (TMA). One warp group computes the logits of a tile, its noise
and its assignment. The other pools the tokens of the tile, while the first prepares the noise of
the next tile. The results are those of `forward.grouping_forward_kernel`.
"""
# Triton does not support unpacking, so its tuples grow by addition in unrolled loops.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated, misc"

from __future__ import annotations

import torch
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

from ...launch import launch
from ..options import GroupingOptions
from .gluon_tiles import bias_of, rows_layout, store_queries, sum_in_threads, tile_noise
from .layout import GroupingPlan

# Columns of a slice: 128 bytes of half precision, the widest swizzle.
SLICE = 64
# Slices in shared memory. Of 32 groups x 768 columns, a tile has 12; pooling holds one tile and
# the copies of the next are up to 8 slices ahead. Bytes: 20 x 8,192 of the ring, 49,152 of the
# queries, 4,096 of the assignment; the limit is 232,448.
STAGES = 20
MAX_GROUPS = 32
# Registers of a thread. Three warp groups share 65,536: 128 x (240 + 224 + 40).
POOL_REGISTERS = 240
ASSIGN_REGISTERS = 224
COPY_REGISTERS = 40
MEAN_REGISTERS = (POOL_REGISTERS + ASSIGN_REGISTERS + COPY_REGISTERS) // 3


@gluon.jit
def copy_slices(
    tokens,
    ring,
    filled,
    freed,
    places,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the slices of every tile through a ring."""
    sample, first, tiles = places
    for tile in range(tiles):
        for part in gl.static_range(SLICES):
            copy = tile * SLICES + part
            stage = copy % STAGES
            # Stages count as freed before their first use: the phase before the first is complete.
            mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)
            mbarrier.expect(filled.index(stage), tokens.block_type.nbytes)
            tma.async_copy_global_to_shared(
                tokens,
                [sample, first + tile * BLOCK_L, part * BLOCK_C],
                filled.index(stage),
                ring.index(stage),
            )


@gluon.jit
def assign_tokens(
    buffers,
    barriers,
    places,
    bounds,
    inputs,
    outputs,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    NOISE: gl.constexpr,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Logits, noise and assignment of every tile; at the end the counts."""
    ring, query, share, shared_count = buffers
    filled, _, assigned, taken, counted = barriers
    sample, first, tiles = places
    last, sample_start = bounds
    queries, group_bias, seeds, token_ids = inputs
    index, counts = outputs
    products: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_G, 16])
    by_group: gl.constexpr = rows_layout(BLOCK_G)
    store_queries(queries, query, WIDTH, GROUPS, BLOCK_C, BLOCK_G, SLICES)
    fence_async_shared()
    group = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, by_group))
    bias = bias_of(group_bias, sample, GROUPS, BLOCK_G)
    if NOISE:
        seed = gl.load(seeds + sample)
    count = sum_in_threads(gl.zeros([BLOCK_L, BLOCK_G], gl.float32, layout=by_group), BLOCK_G)
    for tile in range(tiles):
        start = first + tile * BLOCK_L
        if NOISE:
            noise = tile_noise(seed, token_ids, sample_start, start, last, GROUPS, BLOCK_L, BLOCK_G)
        dots = gl.zeros([BLOCK_L, BLOCK_G], gl.float32, layout=products)
        for part in gl.static_range(SLICES):
            copy = tile * SLICES + part
            stage = copy % STAGES
            mbarrier.wait(filled.index(stage), copy // STAGES & 1)
            dots = warpgroup_mma(
                ring.index(stage).reshape([BLOCK_L, BLOCK_C]),
                query.index(part).permute((1, 0)),
                dots,
                is_async=True,
            )
        dots = warpgroup_mma_wait(0, deps=(dots,))
        logits = gl.permute(gl.reshape(dots, [BLOCK_L, BLOCK_G // 8, 4, 2]), (0, 2, 1, 3))
        logits = gl.reshape(logits, [BLOCK_L, BLOCK_G])
        logits = gl.convert_layout(logits, by_group, assert_trivial=True)
        # logit_lg = <q_g, x_l> + bias_g + e_lg
        logits += bias[None, :]
        if NOISE:
            logits += noise
        # A_lg = [g = argmax_g logit_lg], the first of equal ones
        best = gl.max(logits, 1)
        label = gl.min(gl.where(logits == best[:, None], group[None, :], GROUPS - 1), 1)
        token = start + gl.arange(0, BLOCK_L, layout=gl.SliceLayout(1, by_group))
        label = gl.where(token < last, label, -1)
        gl.store(index + token, label, mask=token < last)
        assignment = gl.where(label[:, None] == group[None, :], 1.0, 0.0)
        # n_g = sum_l A_lg
        count += sum_in_threads(assignment, BLOCK_G)
        mbarrier.wait(taken, (tile & 1) ^ 1)
        share.store(gl.cast(assignment, share.dtype))
        fence_async_shared()
        mbarrier.arrive(assigned, count=1)

    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    total = gl.convert_layout(gl.sum(gl.sum(count, 1), 0), flat)
    shared_count.store(total)
    mbarrier.arrive(counted, count=1)
    group = gl.arange(0, BLOCK_G, layout=flat)
    gl.store(counts + group, total, mask=group < GROUPS)


@gluon.jit
def pool_tokens(
    buffers,
    barriers,
    places,
    pooled,
    eps,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Add up the tokens of each group; the sums [C, G] stay in registers."""
    ring, _, share, shared_count = buffers
    _, freed, assigned, taken, counted = barriers
    _, _, tiles = places
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_G, 16])
    sums = ()
    for _ in gl.static_range(SLICES):
        sums = sums + (gl.zeros([BLOCK_C, BLOCK_G], gl.float32, layout=layout),)
    for tile in range(tiles):
        # Whoever assigned the tile has waited for its slices; waits and arrivals pass that on.
        mbarrier.wait(assigned, tile & 1)
        updated = ()
        running = sums[0]
        for part in gl.static_range(SLICES):
            stage = (tile * SLICES + part) % STAGES
            before = running
            # sum_l A_lg x_l
            running = warpgroup_mma(
                ring.index(stage).reshape([BLOCK_L, BLOCK_C]).permute((1, 0)),
                share,
                sums[part],
                is_async=True,
            )
            if part > 0:
                # The product of the slice before has read its stage.
                updated = updated + (warpgroup_mma_wait(1, deps=(before,)),)
                mbarrier.arrive(freed.index((tile * SLICES + part - 1) % STAGES), count=1)
        sums = updated + (warpgroup_mma_wait(0, deps=(running,)),)
        mbarrier.arrive(freed.index((tile * SLICES + SLICES - 1) % STAGES), count=1)
        mbarrier.arrive(taken, count=1)

    group = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, layout))
    mbarrier.wait(counted, 0)
    count = shared_count.load(gl.SliceLayout(0, layout))
    for part in gl.static_range(SLICES):
        value = sums[part]
        if SPLITS == 1:
            # pooled_g = sum_l A_lg x_l / (n_g + eps)
            value = value / (count + eps)[None, :]
        column = part * BLOCK_C + gl.arange(0, BLOCK_C, layout=gl.SliceLayout(1, layout))
        mask = (column < WIDTH)[:, None] & (group < GROUPS)[None, :]
        gl.store(pooled + group[None, :] * WIDTH + column[:, None], value, mask=mask)


@gluon.jit(do_not_specialize=["length", "chunk"])
def gluon_grouping_forward_kernel(
    tokens,
    queries,
    group_bias,
    seeds,
    token_ids,
    pooled,
    counts,
    index,
    length,
    chunk,
    eps,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    POOL_REGISTERS: gl.constexpr,
    ASSIGN_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    """One program pools `chunk` tokens of a sample; with SPLITS > 1 it writes partial sums.

    `tokens` is a descriptor of [b, L, C] in blocks [1, BLOCK_L, BLOCK_C].
    """
    BLOCK_L: gl.constexpr = tokens.block_type.shape[1]
    BLOCK_C: gl.constexpr = tokens.block_type.shape[2]
    SLICES: gl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    NOISE: gl.constexpr = seeds is not None
    sample = gl.program_id(0) // SPLITS
    first = gl.program_id(0) % SPLITS * chunk
    last = gl.minimum(first + chunk, length)
    program = gl.cast(gl.program_id(0), gl.int64)
    wide_sample = gl.cast(sample, gl.int64)

    ring = gl.allocate_shared_memory(tokens.dtype, [STAGES, 1, BLOCK_L, BLOCK_C], tokens.layout)
    rows: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_G, BLOCK_C], tokens.dtype)
    query = gl.allocate_shared_memory(tokens.dtype, [SLICES, BLOCK_G, BLOCK_C], rows)
    one_hot: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_L, BLOCK_G], tokens.dtype)
    share = gl.allocate_shared_memory(tokens.dtype, [BLOCK_L, BLOCK_G], one_hot)
    shared_count = gl.allocate_shared_memory(
        gl.float32, [BLOCK_G], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    assigned = gl.allocate_shared_memory(gl.int64, [1], barrier)
    taken = gl.allocate_shared_memory(gl.int64, [1], barrier)
    counted = gl.allocate_shared_memory(gl.int64, [1], barrier)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(freed.index(stage), count=1)
    mbarrier.init(assigned, count=1)
    mbarrier.init(taken, count=1)
    mbarrier.init(counted, count=1)

    buffers = (ring, query, share, shared_count)
    barriers = (filled, freed, assigned, taken, counted)
    places = (sample, first, gl.cdiv(last - first, BLOCK_L))
    bounds = (last, wide_sample * length)
    inputs = (queries + wide_sample * GROUPS * WIDTH, group_bias, seeds, token_ids)
    outputs = (index + wide_sample * length, counts + program * GROUPS)
    target = pooled + program * GROUPS * WIDTH
    gl.warp_specialize(
        [
            (
                pool_tokens,
                (
                    buffers, barriers, places, target, eps,
                    WIDTH, GROUPS, SPLITS, BLOCK_L, BLOCK_C, BLOCK_G, SLICES, STAGES,
                ),
            ),
            (
                assign_tokens,
                (
                    buffers, barriers, places, bounds, inputs, outputs,
                    WIDTH, GROUPS, NOISE, BLOCK_L, BLOCK_C, BLOCK_G, SLICES, STAGES,
                ),
            ),
            (
                copy_slices,
                (tokens, ring, filled, freed, places, BLOCK_L, BLOCK_C, SLICES, STAGES),
            ),
        ],
        [4, 1],
        [ASSIGN_REGISTERS, COPY_REGISTERS],
    )  # fmt: skip


def gluon_obstacle(plan: GroupingPlan, tokens: Tensor, options: GroupingOptions) -> str | None:
    """The reason why `launch_forward` does not take this call, or None."""
    if tokens.dtype == torch.float32:
        return "fp32 products take three steps of tf32"
    if options.mode == "soft":
        return "mode soft has no one-hot assignment"
    if options.token_mask is not None:
        return "masked tokens may hold NaN and a copy cannot leave them out"
    if plan.slabs > 1 or plan.block_groups > MAX_GROUPS:
        return f"the sums must fit one program, with at most {MAX_GROUPS} groups"
    if tokens.numel() == 0 or (not tokens.is_meta and tokens.data_ptr() % 16):
        return "the tokens are empty or not aligned to 16 bytes"
    return None


def launch_forward(
    plan: GroupingPlan,
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None,
    options: GroupingOptions,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write (partial) pooled sums, (partial) counts and the index into `outputs`."""
    batch, length, width = tokens.shape
    noise = options.mode == "gumbel"
    launch(
        gluon_grouping_forward_kernel,
        (batch * plan.splits,),
        blocks(tokens, plan.block_tokens, SLICE),
        queries,
        group_bias,
        options.seeds if noise else None,
        options.token_ids if noise else None,
        *outputs,
        length,
        plan.chunk,
        options.eps,
        WIDTH=width,
        GROUPS=queries.shape[1],
        BLOCK_G=plan.block_groups,
        SPLITS=plan.splits,
        STAGES=STAGES,
        POOL_REGISTERS=POOL_REGISTERS,
        ASSIGN_REGISTERS=ASSIGN_REGISTERS,
        COPY_REGISTERS=COPY_REGISTERS,
        num_warps=4,
        maxnreg=MEAN_REGISTERS,
    )


def blocks(values: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of [1, rows, columns] blocks of dense [b, m, n] values in half precision.

    Strides are those of the dense layout, see `launch.descriptor`.
    """
    element = gl.bfloat16 if values.dtype == torch.bfloat16 else gl.float16
    block = [1, rows, columns]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    _, length, width = values.shape
    return TensorDescriptor(values, list(values.shape), [length * width, width, 1], block, layout)
