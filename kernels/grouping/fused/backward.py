"""Backward of grouping: tokens are read once from DRAM, their gradient is written once.

On Hopper in half precision, `stream.py` holds the main kernel where it applies.
"""
# Triton does not support unpacking, so its tuples grow by addition in unrolled loops.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backend import gluon_wanted, say_once
from ...launch import launch
from ...primitives import dot, sample_columns
from ..options import GroupingOptions
from ..reference import GroupingOutput
from .layout import WARPS, GroupingPlan
from .stream import start_stream
from .tiles import (
    add_noise,
    group_softmax,
    load_bias,
    load_group_block,
    load_present,
    load_token_block,
    quad_order,
    store_columns,
    store_group_block,
    store_token_block,
    sum_split_numbers,
    sum_splits,
)


@triton.jit
def grouping_backward_prepare_kernel(
    d_pooled,
    d_counts,
    pooled,
    counts,
    queries,
    shares,
    offsets,
    unscale,
    eps,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    PAIRED: tl.constexpr,
    QUADS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """h_g = d_pooled_g / (n_g + eps) and c_g - <h_g, pooled_g>, scaled by a power of two.

    `shares` receives h, [b, G, C]. If PAIRED, it is [b, 2 BLOCK_G, C] and receives the queries and
    then h, each padded with zeros to BLOCK_G rows; with QUADS in the order of `quad_order`.

    The scale keeps fp16 products of small gradients out of the subnormal range. The main kernel
    removes it in fp32, which is exact.
    """
    sample = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK_G)
    group = position
    if QUADS:
        group = quad_order(position, BLOCK_G)
    present = group < GROUPS
    count = tl.load(counts + sample * GROUPS + group, mask=present, other=1.0)
    inverse = 1.0 / (count + eps)
    inner = tl.zeros((BLOCK_G,), tl.float32)
    largest = tl.zeros((BLOCK_G,), tl.float32)
    rows = (sample * GROUPS + group[:, None]) * WIDTH
    for start in range(0, WIDTH, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = present[:, None] & (column < WIDTH)[None, :]
        upstream = tl.load(d_pooled + rows + column[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.load(pooled + rows + column[None, :], mask=mask, other=0.0).to(tl.float32)
        inner += tl.sum(upstream * value, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(upstream), axis=1))
    # c_g - <h_g, pooled_g>
    offset = tl.load(d_counts + sample * GROUPS + group, mask=present, other=0.0) - inner * inverse
    size = tl.max(tl.maximum(largest * inverse, tl.abs(offset) / 256), axis=0)
    # A zero, non-finite or extreme gradient keeps scale 1.
    usable = (size > 2.0**-100) & (size < 2.0**100)
    exponent = tl.floor(tl.log2(tl.where(usable, size, 1.0)))
    scale = tl.exp2(-exponent)
    tl.store(unscale + sample, tl.exp2(exponent))
    tl.store(offsets + sample * GROUPS + group, offset * scale, mask=present)
    for start in range(0, WIDTH, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = present[:, None] & (column < WIDTH)[None, :]
        upstream = tl.load(d_pooled + rows + column[None, :], mask=mask, other=0.0).to(tl.float32)
        # h_g = d_g / (n_g + eps), scaled
        share = (upstream * (inverse * scale)[:, None]).to(shares.dtype.element_ty)
        if PAIRED:
            row = (sample * 2 * BLOCK_G + position[:, None]) * WIDTH + column[None, :]
            inside = (column < WIDTH)[None, :] & (position >= 0)[:, None]
            query = tl.load(queries + rows + column[None, :], mask=mask, other=0.0)
            tl.store(shares + row, query, mask=inside)
            tl.store(shares + row + BLOCK_G * WIDTH, share, mask=inside)
        else:
            tl.store(shares + rows + column[None, :], share, mask=mask)


@triton.jit(do_not_specialize=["length", "chunk", "num_blocks"])
def grouping_backward_kernel(
    tokens,
    queries,
    group_bias,
    shares,
    offsets,
    unscale,
    seeds,
    token_ids,
    token_mask,
    index,
    d_tokens,
    d_queries,
    d_bias,
    length,
    chunk,
    num_blocks,
    inverse_temperature,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    HARD: tl.constexpr,
    NOISE: tl.constexpr,
    NEED_TOKENS: tl.constexpr,
    NEED_QUERIES: tl.constexpr,
    SPLITS: tl.constexpr,
    SLABS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OWN_BLOCKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program processes `chunk` tokens of a sample and its slab of the columns.

    The program of every slab computes complete logits. `num_blocks` = SLABS * OWN_BLOCKS is also
    a run-time argument, so that the compiler does not unroll the loops over blocks.
    """
    slab = tl.program_id(0) % SLABS
    program = (tl.program_id(0) // SLABS).to(tl.int64)
    own = slab * OWN_BLOCKS
    # The token gradient is computed in half blocks, because whole blocks need too many registers.
    HALVES: tl.constexpr = 2 if BLOCK_C >= 32 else 1
    HALF_C: tl.constexpr = BLOCK_C // HALVES
    last_half = own * HALVES + num_blocks // SLABS * HALVES
    if WIDTH % BLOCK_C != 0:
        # Skip a half block past WIDTH: loads and stores have no mask if WIDTH is a multiple of
        # the half block.
        last_half = tl.minimum(last_half, (WIDTH + HALF_C - 1) // HALF_C)
    sample = program // SPLITS
    first = (program % SPLITS).to(tl.int32) * chunk
    last = tl.minimum(first + chunk, length)
    group = tl.arange(0, BLOCK_G)
    sample_tokens = tokens + sample * length * WIDTH
    sample_d_tokens = d_tokens + sample * length * WIDTH
    sample_queries = queries + sample * GROUPS * WIDTH
    sample_shares = shares + sample * GROUPS * WIDTH
    sums = ()
    for _ in tl.static_range(OWN_BLOCKS):
        sums = sums + (tl.zeros((BLOCK_C, BLOCK_G), tl.float32),)
    bias_sum = tl.zeros((BLOCK_G,), tl.float32)
    for start in range(first, last, BLOCK_L):
        present = load_present(token_mask, start, last, sample, length, BLOCK_L)
        logits = tl.zeros((BLOCK_L, BLOCK_G), tl.float32)
        d_assignment = tl.zeros((BLOCK_L, BLOCK_G), tl.float32)
        for block in tl.range(num_blocks, num_stages=STAGES):
            x = load_token_block(sample_tokens, start, present, block, WIDTH, BLOCK_L, BLOCK_C)
            q = load_group_block(sample_queries, block, WIDTH, GROUPS, BLOCK_C, BLOCK_G)
            h = load_group_block(sample_shares, block, WIDTH, GROUPS, BLOCK_C, BLOCK_G)
            logits = dot(x, q, logits, UPCAST)
            d_assignment = dot(x, h, d_assignment, UPCAST)
        # Bias, seed and scale are loaded per tile: keeping them over the loop would take registers
        # that the sums need.
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
        # 1/tau is applied after the products, in fp32: with a small tau, fp16 would overflow here.
        d_logits = soft * (d_assignment - mean)
        if token_mask is not None:
            # Read again from the index: keeping the mask over the products would spill.
            token = start + tl.arange(0, BLOCK_L)
            present = tl.load(index + sample * length + token, mask=token < last, other=-1) >= 0
        d_logits = tl.where(present[:, None], d_logits, 0.0)
        bias_sum += tl.sum(d_logits, axis=0)
        d_logits = d_logits.to(tokens.dtype.element_ty)
        if NEED_QUERIES:
            updated = ()
            for block in tl.static_range(OWN_BLOCKS):
                x = load_token_block(
                    sample_tokens, start, present, own + block, WIDTH, BLOCK_L, BLOCK_C
                )
                # dq_g = sum_l dlogit_lg x_l
                updated = updated + (dot(tl.trans(x), d_logits, sums[block], UPCAST),)
            sums = updated
        if NEED_TOKENS:
            if HARD:
                token = start + tl.arange(0, BLOCK_L)
                label = tl.load(index + sample * length + token, mask=token < last, other=-1)
                assignment = (label[:, None] == group[None, :]).to(tl.float32)
            else:
                assignment = tl.where(present[:, None], soft, 0.0)
            assignment = assignment.to(tokens.dtype.element_ty)
            back = tl.load(unscale + sample)
            for block in tl.range(own * HALVES, last_half, num_stages=STAGES):
                q = load_group_block(sample_queries, block, WIDTH, GROUPS, HALF_C, BLOCK_G)
                h = load_group_block(sample_shares, block, WIDTH, GROUPS, HALF_C, BLOCK_G)
                # dx_l = sum_g (A_lg h_g + dlogit_lg q_g)
                d_x = dot(d_logits, tl.trans(q), None, UPCAST) * inverse_temperature
                d_x = dot(assignment, tl.trans(h), d_x, UPCAST) * back
                store_token_block(sample_d_tokens, d_x, start, last, block, WIDTH, BLOCK_L, HALF_C)
    if NEED_QUERIES:
        back = tl.load(unscale + sample) * inverse_temperature
        tl.store(
            d_bias + program * GROUPS + group, bias_sum * back, mask=(group < GROUPS) & (slab == 0)
        )
        rows = d_queries + program * GROUPS * WIDTH
        for block in tl.static_range(OWN_BLOCKS):
            store_group_block(
                rows, sums[block] * back, own + block, WIDTH, GROUPS, BLOCK_C, BLOCK_G
            )


@triton.jit
def grouping_backward_combine_kernel(
    partial,
    partial_bias,
    d_queries,
    d_bias,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Sum query and bias gradients of one sample and block over the splits, in a fixed order."""
    sample, part, column = sample_columns(WIDTH, BLOCK_C)
    group = tl.arange(0, BLOCK_G)
    total = sum_splits(partial, sample, column, SPLITS, WIDTH, GROUPS, BLOCK_G)
    store_columns(d_queries, total, sample, column, WIDTH, GROUPS, BLOCK_G)
    if part == 0:
        bias = sum_split_numbers(partial_bias, sample, SPLITS, GROUPS, BLOCK_G)
        tl.store(d_bias + sample * GROUPS + group, bias, mask=group < GROUPS)


def backward(
    plan: GroupingPlan,
    d_pooled: Tensor,
    d_counts: Tensor,
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None,
    options: GroupingOptions,
    output: GroupingOutput,
    need_tokens: bool,
    need_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, tokens and group_bias (fp32 [b, G]); empty where not needed."""
    batch, length, width = tokens.shape
    groups = queries.shape[1]
    pooled, counts, index = output
    noise = options.mode == "gumbel"
    shares = torch.empty_like(queries)
    if plan.stream:
        shares = queries.new_empty((batch, 2 * plan.block_groups, width))
    gluon = gluon_wanted(tokens.device)
    if gluon:
        from .gluon_backward import gluon_obstacle, launch_backward

        if (reason := gluon_obstacle(plan, tokens, need_tokens, need_queries)) is not None:
            say_once("grouping", "plain kernels instead of Gluon", reason)
            gluon = False
    offsets = torch.empty_like(counts)
    unscale = counts.new_empty((batch,))
    d_tokens = torch.empty_like(tokens) if need_tokens else tokens.new_empty((0,))
    d_queries = torch.empty_like(queries) if need_queries else tokens.new_empty((0,))
    d_bias = torch.empty_like(counts) if need_queries else tokens.new_empty((0,))
    partial, partial_bias = d_queries, d_bias
    if need_queries and plan.splits > 1:
        partial = counts.new_empty((batch, plan.splits, groups, width))
        partial_bias = counts.new_empty((batch, plan.splits, groups))
    sizes = {
        "WIDTH": width,
        "GROUPS": groups,
        "BLOCK_C": plan.block_width,
        "BLOCK_G": plan.block_groups,
    }
    launch(
        grouping_backward_prepare_kernel,
        (batch,),
        d_pooled,
        d_counts,
        pooled,
        counts,
        queries,
        shares,
        offsets,
        unscale,
        options.eps,
        **sizes,
        PAIRED=plan.stream,
        QUADS=gluon,
        num_warps=4,
    )
    needs = {"NEED_TOKENS": need_tokens, "NEED_QUERIES": need_queries}
    if gluon:
        launch_backward(
            plan, tokens, shares, d_tokens, group_bias, offsets, unscale, options, index, partial,
            partial_bias, groups,
        )  # fmt: skip
    elif plan.stream:
        start_stream(
            plan, tokens, shares, d_tokens, group_bias, offsets, unscale, options, index, partial,
            partial_bias, {"GROUPS": groups, **needs},
        )  # fmt: skip
    else:
        launch(
            grouping_backward_kernel,
            (batch * plan.splits * plan.slabs,),
            tokens,
            queries,
            group_bias,
            shares,
            offsets,
            unscale,
            options.seeds if noise else None,
            options.token_ids if noise else None,
            options.token_mask,
            index,
            d_tokens,
            partial,
            partial_bias,
            length,
            plan.chunk,
            plan.num_blocks,
            1.0 / options.temperature,
            **sizes,
            **needs,
            HARD=options.mode != "soft",
            NOISE=noise,
            SPLITS=plan.splits,
            SLABS=plan.slabs,
            BLOCK_L=plan.block_tokens,
            OWN_BLOCKS=plan.own_blocks,
            STAGES=plan.stages,
            UPCAST=plan.upcast,
            num_warps=WARPS,
        )
    if need_queries and plan.splits > 1:
        launch(
            grouping_backward_combine_kernel,
            (batch * triton.cdiv(width, plan.block_width),),
            partial,
            partial_bias,
            d_queries,
            d_bias,
            **sizes,
            SPLITS=plan.splits,
            num_warps=4,
        )
    return d_queries, d_tokens, d_bias
