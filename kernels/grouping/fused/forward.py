"""Forward of grouping: assigns each token and pools each group; tokens are read once from DRAM."""
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
from .layout import WARPS, GroupingPlan
from .tiles import (
    add_noise,
    group_softmax,
    load_bias,
    load_group_block,
    load_group_blocks,
    load_present,
    load_token_block,
    load_tokens,
    pack,
    store_columns,
    store_group_block,
    sum_split_numbers,
    sum_splits,
    unpack,
)


@triton.jit
def add_logits(
    logits,
    sample_tokens,
    sample_queries,
    start,
    present,
    first_block,
    last_block,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add the products of column blocks [first_block, last_block), which another slab owns."""
    for block in range(first_block, last_block):
        x = load_token_block(sample_tokens, start, present, block, WIDTH, BLOCK_L, BLOCK_C)
        q = load_group_block(sample_queries, block, WIDTH, GROUPS, BLOCK_C, BLOCK_G)
        logits = dot(x, q, logits, UPCAST)
    return logits


@triton.jit(do_not_specialize=["length", "chunk"])
def grouping_forward_kernel(
    tokens,
    queries,
    group_bias,
    seeds,
    token_ids,
    token_mask,
    pooled,
    counts,
    index,
    length,
    chunk,
    inverse_temperature,
    eps,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    HARD: tl.constexpr,
    NOISE: tl.constexpr,
    SPLITS: tl.constexpr,
    SLABS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OWN_BLOCKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    RESIDENT: tl.constexpr,
    PREFETCH: tl.constexpr,
    STAGES: tl.constexpr,
    BRANCHES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One program pools `chunk` tokens of a sample over its slab of the columns.

    With SPLITS > 1 it writes partial sums. With SLABS > 1 every program computes complete logits:
    it reads the columns of the other slabs from L2, where the programs of those slabs load them.
    """
    NUM_BLOCKS: tl.constexpr = SLABS * OWN_BLOCKS
    slab = tl.program_id(0) % SLABS
    program = (tl.program_id(0) // SLABS).to(tl.int64)
    KEPT: tl.constexpr = OWN_BLOCKS - PREFETCH
    own = slab * OWN_BLOCKS
    sample = program // SPLITS
    first = (program % SPLITS).to(tl.int32) * chunk
    last = tl.minimum(first + chunk, length)
    group = tl.arange(0, BLOCK_G)
    bias = load_bias(group_bias, sample, GROUPS, BLOCK_G)
    sample_tokens = tokens + sample * length * WIDTH
    sample_queries = queries + sample * GROUPS * WIDTH
    if RESIDENT:
        query = load_group_blocks(sample_queries, own, WIDTH, GROUPS, BLOCK_C, BLOCK_G, OWN_BLOCKS)
    if NOISE:
        seed = tl.load(seeds + sample)
    sums = ()
    for _ in tl.static_range(OWN_BLOCKS):
        sums = sums + (tl.zeros((BLOCK_C, BLOCK_G), tl.float32),)
    count = tl.zeros((BLOCK_G,), tl.float32)
    if PREFETCH > 0:
        coming = load_present(token_mask, first, last, sample, length, BLOCK_L)
        ahead = load_tokens(
            sample_tokens, first, coming, own + KEPT, WIDTH, BLOCK_L, BLOCK_C, PREFETCH
        )
        ahead = pack(ahead)
    for start in tl.range(first, last, BLOCK_L, num_stages=STAGES):
        # Always true, which Triton cannot tell (LLVM can, so no jump is left). Triton issues the
        # copies of the next tile before a branch, but after other work that uses the present one.
        # The inner branches hide that the logits lead to another product: for such a product, both
        # warp groups would compute all 64 rows. The conditions differ, because Triton joins
        # neighbours with the same one; without the outer branch it would repeat the noise.
        there = (start < last, last > start, start != last)
        present = load_present(token_mask, start, last, sample, length, BLOCK_L)
        x = load_tokens(sample_tokens, start, present, own, WIDTH, BLOCK_L, BLOCK_C, KEPT)
        if PREFETCH > 0:
            x = x + unpack(ahead, tokens.dtype.element_ty)
        # Every slab adds in the order of the columns. In another order, rounding could decide a
        # near-tie differently, and a slab would not pool by the assignment that `index` holds.
        logits = tl.zeros((BLOCK_L, BLOCK_G), tl.float32)
        if SLABS > 1:
            logits = add_logits(
                logits, sample_tokens, sample_queries, start, present, 0, own,
                WIDTH, GROUPS, BLOCK_L, BLOCK_C, BLOCK_G, UPCAST,
            )  # fmt: skip
        if not BRANCHES or there[2]:
            for block in tl.static_range(OWN_BLOCKS):
                if not BRANCHES or there[block % 2]:
                    if RESIDENT:
                        q = query[block]
                    else:
                        q = load_group_block(
                            sample_queries, own + block, WIDTH, GROUPS, BLOCK_C, BLOCK_G
                        )
                    logits = dot(x[block], q, logits, UPCAST)
            if SLABS > 1:
                logits = add_logits(
                    logits, sample_tokens, sample_queries, start, present,
                    own + OWN_BLOCKS, NUM_BLOCKS, WIDTH, GROUPS, BLOCK_L, BLOCK_C, BLOCK_G, UPCAST,
                )  # fmt: skip
            # logit_lg = <q_g, x_l> + bias_g + e_lg
            logits += bias[None, :]
            if NOISE:
                logits = add_noise(
                    logits, start, last, seed, token_ids, sample, length, GROUPS, BLOCK_L, BLOCK_G
                )
            # A_lg = [g = argmax_g logit_lg]
            label = tl.where(present, tl.argmax(logits, axis=1), -1)
            token = start + tl.arange(0, BLOCK_L)
            labels = index + sample * length + token
            tl.store(labels, label, mask=(token < last) & (slab == 0))
            if PREFETCH > 0:
                coming = load_present(token_mask, start + BLOCK_L, last, sample, length, BLOCK_L)
                ahead = load_tokens(
                    sample_tokens,
                    start + BLOCK_L,
                    coming,
                    own + KEPT,
                    WIDTH,
                    BLOCK_L,
                    BLOCK_C,
                    PREFETCH,
                )
                ahead = pack(ahead)
            if HARD:
                assignment = (label[:, None] == group[None, :]).to(tl.float32)
            else:
                assignment = group_softmax(logits, inverse_temperature)
                assignment = tl.where(present[:, None], assignment, 0.0)
            # n_g = sum_l A_lg
            count += tl.sum(assignment, axis=0)
            share = assignment.to(tokens.dtype.element_ty)
            updated = ()
            for block in tl.static_range(OWN_BLOCKS):
                # sum_l A_lg x_l
                updated = updated + (dot(tl.trans(x[block]), share, sums[block], UPCAST),)
            sums = updated
    tl.store(counts + program * GROUPS + group, count, mask=(group < GROUPS) & (slab == 0))
    for block in tl.static_range(OWN_BLOCKS):
        value = sums[block]
        if SPLITS == 1:
            # pooled_g = sum_l A_lg x_l / (n_g + eps)
            value = value / (count + eps)[None, :]
        store_group_block(
            pooled + program * GROUPS * WIDTH, value, own + block, WIDTH, GROUPS, BLOCK_C, BLOCK_G
        )


@triton.jit
def grouping_forward_combine_kernel(
    partial,
    partial_counts,
    pooled,
    counts,
    eps,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Sum the splits of one sample and one block of columns, in a fixed order, and divide."""
    sample, part, column = sample_columns(WIDTH, BLOCK_C)
    group = tl.arange(0, BLOCK_G)
    total = sum_splits(partial, sample, column, SPLITS, WIDTH, GROUPS, BLOCK_G)
    count = sum_split_numbers(partial_counts, sample, SPLITS, GROUPS, BLOCK_G)
    value = total / (count + eps)[:, None]
    store_columns(pooled, value, sample, column, WIDTH, GROUPS, BLOCK_G)
    if part == 0:
        tl.store(counts + sample * GROUPS + group, count, mask=group < GROUPS)


def forward(
    plan: GroupingPlan,
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None,
    options: GroupingOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled [b, G, C], counts fp32 [b, G] and index int32 [b, L] of contiguous inputs."""
    batch, length, width = tokens.shape
    groups = queries.shape[1]
    pooled = tokens.new_empty((batch, groups, width))
    counts = tokens.new_empty((batch, groups), dtype=torch.float32)
    index = tokens.new_empty((batch, length), dtype=torch.int32)
    partial, partial_counts = pooled, counts
    noise = options.mode == "gumbel"
    if plan.splits > 1:
        partial = counts.new_empty((batch, plan.splits, groups, width))
        partial_counts = counts.new_empty((batch, plan.splits, groups))
    gluon = gluon_wanted(tokens.device)
    if gluon:
        from .gluon_forward import gluon_obstacle, launch_forward

        if (reason := gluon_obstacle(plan, tokens, options)) is not None:
            say_once("grouping", "plain kernels instead of Gluon", reason)
            gluon = False
    if gluon:
        outputs = (partial, partial_counts, index)
        launch_forward(plan, queries, tokens, group_bias, options, outputs)
    else:
        launch(
            grouping_forward_kernel,
            (batch * plan.splits * plan.slabs,),
            tokens,
            queries,
            group_bias,
            options.seeds if noise else None,
            options.token_ids if noise else None,
            options.token_mask,
            partial,
            partial_counts,
            index,
            length,
            plan.chunk,
            1.0 / options.temperature,
            options.eps,
            WIDTH=width,
            GROUPS=groups,
            HARD=options.mode != "soft",
            NOISE=noise,
            SPLITS=plan.splits,
            SLABS=plan.slabs,
            BLOCK_L=plan.block_tokens,
            BLOCK_C=plan.block_width,
            OWN_BLOCKS=plan.own_blocks,
            BLOCK_G=plan.block_groups,
            RESIDENT=plan.resident,
            PREFETCH=plan.prefetch,
            STAGES=plan.stages,
            BRANCHES=plan.branches,
            UPCAST=plan.upcast,
            num_warps=WARPS,
            num_stages=plan.stages,
        )
    if plan.splits > 1:
        launch(
            grouping_forward_combine_kernel,
            (batch * triton.cdiv(width, plan.block_width),),
            partial,
            partial_counts,
            pooled,
            counts,
            options.eps,
            WIDTH=width,
            GROUPS=groups,
            SPLITS=plan.splits,
            BLOCK_C=plan.block_width,
            BLOCK_G=plan.block_groups,
            num_warps=4,
        )
    return pooled, counts, index
