"""Backward of grouping on sm_90, in Gluon, with roles for the warps.

Two warps copy slices of token tiles (TMA), each through a ring of its own. One warp group computes
the logits and dA of a tile and from them dlogit and A. Another multiplies these with the queries
and h and writes the gradient of the tokens, a third adds up the gradient of the queries, while the
first has turned to the next tile. The results are those of
`stream.grouping_backward_stream_kernel`, up to rounding.
"""

from __future__ import annotations

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

from ...launch import launch
from ...primitives import LOG2_E
from ..options import GroupingOptions
from .gluon_forward import blocks, copy_slices
from .gluon_gradients import add_query_gradient, write_token_gradient
from .gluon_tiles import bias_of, in_columns, in_groups, rows_layout, sum_in_threads, tile_noise
from .layout import GroupingPlan
from .stream import lift_of

# Tokens of a tile, the rows of a product, and columns of a slice: 128 bytes, the widest swizzle.
BLOCK_L = 64
SLICE = 64
# Slices of the two rings. Bytes at 32 groups x 768: 98,304 of queries and h, 8,192 of dlogit and A,
# 16,384 of the two buffers of stores, 8,192 per stage; the limit is 232,448.
STAGES = 8
AGAIN_STAGES = 5
# Registers of a thread. Four warp groups share 65,536: 128 x (224 + 168 + 96 + 24).
SUM_REGISTERS = 224
FACTOR_REGISTERS = 168
WRITE_REGISTERS = 96
COPY_REGISTERS = 24
MEAN_REGISTERS = (SUM_REGISTERS + FACTOR_REGISTERS + WRITE_REGISTERS + COPY_REGISTERS) // 4


@gluon.jit
def copy_rows_and_slices(
    tokens,
    rows,
    held,
    given,
    ring,
    filled,
    freed,
    places,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the sample's queries and h once, then the slices of every tile."""
    mbarrier.expect(given, SLICES * rows.block_type.nbytes)
    for part in gl.static_range(SLICES):
        tma.async_copy_global_to_shared(
            rows, [places[0], 0, part * BLOCK_C], given, held.index(part)
        )
    copy_slices(tokens, ring, filled, freed, places, BLOCK_L, BLOCK_C, SLICES, STAGES)


@gluon.jit
def compute_factors(
    buffers,
    barriers,
    places,
    bounds,
    inputs,
    scales,
    d_bias,
    GROUPS: gl.constexpr,
    HARD: gl.constexpr,
    NOISE: gl.constexpr,
    BLOCK_L: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
    STAGES: gl.constexpr,
):
    """dlogit and A of every tile, both scaled; at the end the gradient of the bias."""
    ring, held, d_logits, shares = buffers
    given, filled, freed, computed, used = barriers
    sample, first, tiles = places
    last, sample_start = bounds
    group_bias, offsets, seeds, token_ids, index = inputs
    inverse_temperature, lift, back = scales
    products: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * BLOCK_G, 16])
    by_group: gl.constexpr = rows_layout(BLOCK_G)
    group = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, by_group))
    bias = bias_of(group_bias, sample, GROUPS, BLOCK_G)
    # c_g - <h_g, pooled_g>
    offset = gl.load(offsets + sample * GROUPS + group, mask=group < GROUPS, other=0.0)
    if NOISE:
        seed = gl.load(seeds + sample)
    sums = sum_in_threads(gl.zeros([BLOCK_L, BLOCK_G], gl.float32, layout=by_group), BLOCK_G)
    mbarrier.wait(given, 0)
    for tile in range(tiles):
        start = first + tile * BLOCK_L
        token = start + gl.arange(0, BLOCK_L, layout=gl.SliceLayout(1, by_group))
        present = token < last
        if HARD:
            # Arrives during noise and products.
            label = gl.load(index + token, mask=present, other=-1)
        if NOISE:
            noise = tile_noise(seed, token_ids, sample_start, start, last, GROUPS, BLOCK_L, BLOCK_G)
        # <q_g, x_l> and then <h_g, x_l>
        dots = gl.zeros([BLOCK_L, 2 * BLOCK_G], gl.float32, layout=products)
        for part in range(SLICES):
            copy = tile * SLICES + part
            stage = copy % STAGES
            mbarrier.wait(filled.index(stage), copy // STAGES & 1)
            dots = warpgroup_mma(
                ring.index(stage).reshape([BLOCK_L, BLOCK_C]),
                held.index(part).reshape([2 * BLOCK_G, BLOCK_C]).permute((1, 0)),
                dots,
                is_async=True,
            )
            # The product of the slice before has read its stage.
            dots = warpgroup_mma_wait(1, deps=(dots,))
            before = freed.index((copy + STAGES - 1) % STAGES)
            mbarrier.arrive(before, count=1, pred=part > 0)
        dots = warpgroup_mma_wait(0, deps=(dots,))
        mbarrier.arrive(freed.index((tile * SLICES + SLICES - 1) % STAGES), count=1)
        logits, d_assignment = in_groups(dots, BLOCK_L, BLOCK_G)
        logits += bias[None, :]
        if NOISE:
            logits += noise
        # soft_lg = exp(logit_lg / tau) / sum_g exp(logit_lg / tau)
        exponent = (logits - gl.max(logits, 1)[:, None]) * (inverse_temperature * LOG2_E)
        power = gl.exp2(exponent)
        soft = power / gl.sum(power, 1)[:, None]
        d_assignment += offset[None, :]
        # dlogit_lg = soft_lg (dA_lg - sum_g soft_lg dA_lg) / tau
        mean = gl.sum(soft * d_assignment, 1)
        change = gl.where(present[:, None], soft * (d_assignment - mean[:, None]), 0.0)
        sums += sum_in_threads(change, BLOCK_G)
        if HARD:
            assignment = gl.where(label[:, None] == group[None, :], lift, 0.0)
        else:
            assignment = gl.where(present[:, None], soft * lift, 0.0)
        d_logit = in_columns(change * (lift * inverse_temperature), BLOCK_L, BLOCK_G)
        assignment = in_columns(assignment, BLOCK_L, BLOCK_G)
        # The products of the tile before have read the buffers.
        mbarrier.wait(used, (tile & 1) ^ 1)
        d_logits.store(gl.cast(d_logit, d_logits.dtype))
        shares.store(gl.cast(assignment, shares.dtype))
        fence_async_shared()
        mbarrier.arrive(computed, count=1)

    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    # dbias_g = sum_l dlogit_lg
    total = gl.convert_layout(gl.sum(gl.sum(sums, 1), 0), flat)
    group = gl.arange(0, BLOCK_G, layout=flat)
    gl.store(d_bias + group, total * (back * inverse_temperature), mask=group < GROUPS)


@gluon.jit(do_not_specialize=["length", "chunk"])
def gluon_grouping_backward_kernel(
    tokens,
    rows,
    d_tokens,
    group_bias,
    offsets,
    unscale,
    seeds,
    token_ids,
    index,
    d_queries,
    d_bias,
    length,
    chunk,
    inverse_temperature,
    lift,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    HARD: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    AGAIN_STAGES: gl.constexpr,
    FACTOR_REGISTERS: gl.constexpr,
    WRITE_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    """One program processes `chunk` tokens of a sample; with SPLITS > 1 it writes partial sums.

    `tokens` and `d_tokens` are descriptors of [b, L, C] in blocks [1, BLOCK_L, BLOCK_C], `rows` of
    [b, 2 BLOCK_G, C] in blocks [1, 2 BLOCK_G, BLOCK_C], with the queries and then the h of each
    sample in the order of `tiles.quad_order`.
    """
    BLOCK_L: gl.constexpr = tokens.block_type.shape[1]
    BLOCK_C: gl.constexpr = tokens.block_type.shape[2]
    BLOCK_G: gl.constexpr = rows.block_type.shape[1] // 2
    SLICES: gl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    NOISE: gl.constexpr = seeds is not None
    sample = gl.program_id(0) // SPLITS
    first = gl.program_id(0) % SPLITS * chunk
    last = gl.minimum(first + chunk, length)
    program = gl.cast(gl.program_id(0), gl.int64)
    wide_sample = gl.cast(sample, gl.int64)
    back = gl.load(unscale + sample)

    ring = gl.allocate_shared_memory(tokens.dtype, [STAGES, 1, BLOCK_L, BLOCK_C], tokens.layout)
    again = gl.allocate_shared_memory(
        tokens.dtype, [AGAIN_STAGES, 1, BLOCK_L, BLOCK_C], tokens.layout
    )
    held = gl.allocate_shared_memory(rows.dtype, [SLICES, 1, 2 * BLOCK_G, BLOCK_C], rows.layout)
    results = gl.allocate_shared_memory(d_tokens.dtype, [2, 1, BLOCK_L, BLOCK_C], d_tokens.layout)
    factor: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_L, BLOCK_G], tokens.dtype)
    d_logits = gl.allocate_shared_memory(tokens.dtype, [BLOCK_L, BLOCK_G], factor)
    shares = gl.allocate_shared_memory(tokens.dtype, [BLOCK_L, BLOCK_G], factor)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    filled_again = gl.allocate_shared_memory(gl.int64, [AGAIN_STAGES, 1], barrier)
    freed_again = gl.allocate_shared_memory(gl.int64, [AGAIN_STAGES, 1], barrier)
    given = gl.allocate_shared_memory(gl.int64, [1], barrier)
    computed = gl.allocate_shared_memory(gl.int64, [1], barrier)
    used = gl.allocate_shared_memory(gl.int64, [1], barrier)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(freed.index(stage), count=1)
    for stage in gl.static_range(AGAIN_STAGES):
        mbarrier.init(filled_again.index(stage), count=1)
        mbarrier.init(freed_again.index(stage), count=1)
    mbarrier.init(given, count=1)
    mbarrier.init(computed, count=1)
    # Both groups that multiply with dlogit give it back.
    mbarrier.init(used, count=2)

    tiles = gl.cdiv(last - first, BLOCK_L)
    places = (sample, first, tiles)
    inputs = (group_bias, offsets, seeds, token_ids, index + wide_sample * length)
    scale = back / lift
    gl.warp_specialize(
        [
            (
                add_query_gradient,
                (
                    (again, d_logits), (filled_again, freed_again, computed, used), tiles,
                    d_queries + program * GROUPS * WIDTH, scale,
                    WIDTH, GROUPS, BLOCK_L, BLOCK_C, BLOCK_G, SLICES, AGAIN_STAGES,
                ),
            ),
            (
                compute_factors,
                (
                    (ring, held, d_logits, shares), (given, filled, freed, computed, used),
                    places, (last, wide_sample * length), inputs,
                    (inverse_temperature, lift, back), d_bias + program * GROUPS,
                    GROUPS, HARD, NOISE, BLOCK_L, BLOCK_C, BLOCK_G, SLICES, STAGES,
                ),
            ),
            (
                write_token_gradient,
                (
                    d_tokens, (held, d_logits, shares, results), (computed, used), places, scale,
                    BLOCK_L, BLOCK_C, BLOCK_G, SLICES,
                ),
            ),
            (
                copy_rows_and_slices,
                (
                    tokens, rows, held, given, ring, filled, freed, places,
                    BLOCK_L, BLOCK_C, SLICES, STAGES,
                ),
            ),
            (
                copy_slices,
                (
                    tokens, again, filled_again, freed_again, places,
                    BLOCK_L, BLOCK_C, SLICES, AGAIN_STAGES,
                ),
            ),
        ],
        [4, 4, 1, 1],
        [FACTOR_REGISTERS, WRITE_REGISTERS, COPY_REGISTERS, COPY_REGISTERS],
    )  # fmt: skip


def gluon_obstacle(
    plan: GroupingPlan, tokens: Tensor, need_tokens: bool, need_queries: bool
) -> str | None:
    """The reason why `launch_backward` does not take this call, or None."""
    if not plan.stream:
        return "backward does not stream (fp32, a mask, wide sums or an extreme temperature)"
    if not (need_tokens and need_queries):
        return "only one of the gradients is needed"
    if not tokens.is_meta and tokens.data_ptr() % 16:
        return "the tokens are not aligned to 16 bytes"
    return None


def launch_backward(
    plan: GroupingPlan,
    tokens: Tensor,
    rows: Tensor,
    d_tokens: Tensor,
    group_bias: Tensor | None,
    offsets: Tensor,
    unscale: Tensor,
    options: GroupingOptions,
    index: Tensor,
    d_queries: Tensor,
    d_bias: Tensor,
    groups: int,
) -> None:
    """Write the gradient of the tokens and (partial) gradients of queries and bias.

    Arguments as of `stream.start_stream`, but `rows` are in the order of `tiles.quad_order`.
    """
    batch, length, width = tokens.shape
    noise = options.mode == "gumbel"
    launch(
        gluon_grouping_backward_kernel,
        (batch * plan.splits,),
        blocks(tokens, BLOCK_L, SLICE),
        blocks(rows, rows.shape[1], SLICE),
        blocks(d_tokens, BLOCK_L, SLICE),
        group_bias,
        offsets,
        unscale,
        options.seeds if noise else None,
        options.token_ids if noise else None,
        index,
        d_queries,
        d_bias,
        length,
        plan.chunk,
        1.0 / options.temperature,
        lift_of(options.temperature),
        WIDTH=width,
        GROUPS=groups,
        HARD=options.mode != "soft",
        SPLITS=plan.splits,
        STAGES=STAGES,
        AGAIN_STAGES=AGAIN_STAGES,
        FACTOR_REGISTERS=FACTOR_REGISTERS,
        WRITE_REGISTERS=WRITE_REGISTERS,
        COPY_REGISTERS=COPY_REGISTERS,
        num_warps=4,
        maxnreg=MEAN_REGISTERS,
    )
