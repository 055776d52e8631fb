"""Backward of grouping on Hopper: one flat loop over column blocks, copies two steps ahead."""
# Triton does not support unpacking, so its tuples grow by addition in unrolled loops.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import descriptor, launch
from ...primitives import dot
from ..options import GroupingOptions
from .layout import WARPS, GroupingPlan
from .tiles import add_noise, group_softmax, load_bias, store_group_block

# A power of two near tau scales A in the products; it must keep A in fp16's range and the scale
# of the result in fp32's.
_TEMPERATURES = (2.0**-10, 2.0**10)


def streamable(tokens: Tensor, options: GroupingOptions) -> bool:
    """Whether descriptors and the scale of the products allow this call; sizes are the plan's.

    A descriptor cannot leave out masked tokens, whose memory may hold NaN, and cannot describe an
    empty tensor. Tokens that are not aligned to 16 bytes are copied.
    """
    least, most = _TEMPERATURES
    scalable = least <= options.temperature <= most
    return options.token_mask is None and scalable and tokens.numel() > 0


@triton.jit(do_not_specialize=["length", "chunk"])
def grouping_backward_stream_kernel(
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
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    HARD: tl.constexpr,
    NOISE: tl.constexpr,
    NEED_TOKENS: tl.constexpr,
    NEED_QUERIES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DTYPE: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program processes `chunk` tokens of a sample in steps of one block of columns.

    In the steps of tile t it adds up the logits and dA of t and completes the gradients of tile
    t - 1, whose tokens it reads again from L2. `tokens` and `d_tokens` are descriptors of
    [b, L, C], `rows` of [b, 2 BLOCK_G, C] with the queries and then the h of each sample.
    """
    sample_index = tl.program_id(0) // SPLITS
    sample = sample_index.to(tl.int64)
    program = tl.program_id(0).to(tl.int64)
    first = (tl.program_id(0) % SPLITS) * chunk
    last = tl.minimum(first + chunk, length)
    group = tl.arange(0, BLOCK_G)
    back = tl.load(unscale + sample)
    sums = ()
    for _ in tl.static_range(NUM_BLOCKS):
        sums = sums + (tl.zeros((BLOCK_C, BLOCK_G), tl.float32),)
    bias_sum = tl.zeros((BLOCK_G,), tl.float32)
    # <q_g, x_l> and then <h_g, x_l>, of the blocks so far
    dots = tl.zeros((BLOCK_L, 2 * BLOCK_G), tl.float32)
    # Of the tile before: dlogit times lift / tau; beside it A times lift.
    d_logits = tl.zeros((BLOCK_L, BLOCK_G), DTYPE)
    factors = tl.zeros((BLOCK_L, 2 * BLOCK_G), DTYPE)
    # One bit, of the block whose turn it is: from a number, the compiler would make a jump table.
    turn = 1
    steps = tl.where(first < last, (tl.cdiv(last - first, BLOCK_L) + 1) * NUM_BLOCKS, 0)
    for step in tl.range(0, steps, num_stages=STAGES):
        start = first + step // NUM_BLOCKS * BLOCK_L
        column = step % NUM_BLOCKS * BLOCK_C
        x = tokens.load([sample_index, start, column]).reshape(BLOCK_L, BLOCK_C)
        qh = rows.load([sample_index, 0, column]).reshape(2 * BLOCK_G, BLOCK_C)
        dots = dot(x, tl.trans(qh), dots, UPCAST)
        if NEED_TOKENS:
            # dx_l = sum_g (A_lg h_g + dlogit_lg q_g)
            d_x = dot(factors, qh, None, UPCAST) * (back / lift)
            # Before the first tile there is none: a store in front of the sample is dropped.
            row = tl.where(start > first, start, 0) - BLOCK_L
            block = d_x.to(DTYPE).reshape(1, BLOCK_L, BLOCK_C)
            d_tokens.store([sample_index, row, column], block)
        if NEED_QUERIES:
            before = tokens.load([sample_index, start - BLOCK_L, column])
            before = tl.trans(before.reshape(BLOCK_L, BLOCK_C))
            updated = ()
            for block in tl.static_range(NUM_BLOCKS):
                total = sums[block]
                if (turn & (1 << block)) != 0:
                    # dq_g = sum_l dlogit_lg x_l
                    total = dot(before, d_logits, total, UPCAST)
                updated = updated + (total,)
            sums = updated
        if ((turn & (1 << (NUM_BLOCKS - 1))) != 0) & (start < last):
            logits, d_assignment = tl.split(
                tl.permute(tl.reshape(dots, (BLOCK_L, 2, BLOCK_G)), (0, 2, 1))
            )
            logits += load_bias(group_bias, sample, GROUPS, BLOCK_G)[None, :]
            if NOISE:
                seed = tl.load(seeds + sample)
                logits = add_noise(
                    logits, start, last, seed, token_ids, sample, length, GROUPS, BLOCK_L, BLOCK_G
                )
            soft = group_softmax(logits, inverse_temperature)
            offset = tl.load(offsets + sample * GROUPS + group, mask=group < GROUPS, other=0.0)
            # dA_lg = <h_g, x_l> - <h_g, pooled_g> + c_g
            d_assignment += offset[None, :]
            # dlogit_lg = soft_lg (dA_lg - sum_g soft_lg dA_lg) / tau
            mean = tl.sum(soft * d_assignment, axis=1)[:, None]
            token = start + tl.arange(0, BLOCK_L)
            present = token < last
            change = tl.where(present[:, None], soft * (d_assignment - mean), 0.0)
            bias_sum += tl.sum(change, axis=0)
            d_logits = (change * (lift * inverse_temperature)).to(DTYPE)
            if NEED_TOKENS:
                if HARD:
                    label = tl.load(index + sample * length + token, mask=present, other=-1)
                    assignment = (label[:, None] == group[None, :]).to(tl.float32)
                else:
                    assignment = tl.where(present[:, None], soft, 0.0)
                pair = tl.join(d_logits, (assignment * lift).to(DTYPE))
                factors = tl.reshape(tl.permute(pair, (0, 2, 1)), (BLOCK_L, 2 * BLOCK_G))
            dots = tl.zeros((BLOCK_L, 2 * BLOCK_G), tl.float32)
        turn = tl.where(turn == 1 << (NUM_BLOCKS - 1), 1, turn << 1)
    if NEED_QUERIES:
        tl.store(
            d_bias + program * GROUPS + group,
            bias_sum * (back * inverse_temperature),
            mask=group < GROUPS,
        )
        for block in tl.static_range(NUM_BLOCKS):
            store_group_block(
                d_queries + program * GROUPS * WIDTH,
                sums[block] * (back / lift),
                block,
                WIDTH,
                GROUPS,
                BLOCK_C,
                BLOCK_G,
            )


def lift_of(temperature: float) -> float:
    """The power of two just below tau: products hold A and dlogit times lift / tau in [1/2, 1]."""
    return 2.0 ** (math.frexp(temperature)[1] - 1)


def start_stream(
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
    needs: dict[str, Any],
) -> None:
    """Start the kernel; `rows` [b, 2 block_groups, C], `needs` are its constants of the call."""
    if not tokens.is_meta and tokens.data_ptr() % 16:
        tokens = tokens.clone()
    batch, length, width = tokens.shape
    tile = [1, plan.block_tokens, plan.block_width]
    noise = options.mode == "gumbel"
    launch(
        grouping_backward_stream_kernel,
        (batch * plan.splits,),
        descriptor(tokens, tile),
        descriptor(rows, [1, rows.shape[1], plan.block_width]),
        # Without a gradient, the kernel does not touch this descriptor.
        descriptor(d_tokens if needs["NEED_TOKENS"] else tokens, tile),
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
        HARD=options.mode != "soft",
        NOISE=noise,
        SPLITS=plan.splits,
        BLOCK_L=plan.block_tokens,
        BLOCK_C=plan.block_width,
        NUM_BLOCKS=plan.num_blocks,
        BLOCK_G=plan.block_groups,
        DTYPE={torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[tokens.dtype],
        STAGES=plan.stages,
        UPCAST=plan.upcast,
        num_warps=WARPS,
        **needs,
    )
