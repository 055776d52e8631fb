"""Launches of the Gluon kernel on small calls, in its interpreter."""

from __future__ import annotations

import dataclasses

import torch

from svilm_fast.kernels.device import H200
from svilm_fast.kernels.grouping.fused.layout import plan
from svilm_fast.kernels.grouping.options import GroupingOptions
from svilm_fast.kernels.launch import record_launches
from svilm_fast.kernels.operators import dense
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_interpreter import interpret

WHOLE = (("splits", 1), ("chunk", 320))
# Three tiles and a part of one, three slices of 16 columns: slices come back to other stages.
MAIN = {"batch": 1, "length": 230, "dtype": torch.float16, "plan": WHOLE}
CALLS = {
    "parts of a tile and of a slice": {"length": 100, "width": 40},
    "one token": {"length": 1},
    "whole tiles": {"length": 128},
    "one token more": {"length": 129},
    "one slice": {"length": 150, "width": 16},
    "32 groups": {"length": 70, "groups": 32},
    "17 groups": {"length": 70, "groups": 17},
    "one group": {"length": 70, "groups": 1},
    "bfloat16": {"length": 100, "dtype": torch.bfloat16},
    "dropped tokens": {"length": 100, "dropped": True},
    "no noise, no bias": {"length": 100, "mode": "hard", "bias": None},
    "bias for all samples": {"length": 70, "bias": "shared", "eps": 0.25},
    "splits": {"length": 300, "plan": (("splits", 2), ("chunk", 192))},
    "splits of nothing": {"length": 130, "plan": (("splits", 3), ("chunk", 128))},
}


def planned(arguments, overrides, backward=False):
    """The plan of the target's GPU for these tensors, with overrides."""
    batch, length, width = arguments["tokens"].shape
    groups, dtype = arguments["queries"].shape[1], arguments["tokens"].dtype
    found = plan(batch, length, groups, width, dtype, H200, backward, streamable=True)
    return dataclasses.replace(found, **dict(overrides))


def options_of(arguments):
    """The options, with dense tensors as `fused_grouping` makes them."""
    named = {each.name: arguments[each.name] for each in dataclasses.fields(GroupingOptions)}
    tensors = {name: dense(value) for name, value in named.items() if torch.is_tensor(value)}
    return GroupingOptions(**named | tensors)


def run_kernel(module, arguments, overrides, seed):
    """Pooled, counts and index of the interpreted kernel, and its programs' logs of products."""
    tokens, queries, bias = (arguments[name] for name in ("tokens", "queries", "group_bias"))
    batch, groups, width = queries.shape
    if bias is not None:
        bias = bias.expand(batch, groups).contiguous()
    cut = planned(arguments, overrides)
    options = options_of(arguments)
    dtype = tokens.dtype if cut.splits == 1 else torch.float32
    pooled = torch.full((batch, cut.splits, groups, width), torch.nan, dtype=dtype)
    counts = torch.full((batch, cut.splits, groups), torch.nan)
    index = torch.full(tokens.shape[:2], -7, dtype=torch.int32)
    with record_launches() as launches:
        module.launch_forward(cut, queries, tokens, bias, options, (pooled, counts, index))
    (launch,) = launches
    logs = interpret(launch, seed + SEED_OFFSET)
    total = counts.sum(1)
    if cut.splits == 1:
        return pooled[:, 0], total, index, logs
    return pooled.sum(1) / (total + options.eps)[..., None], total, index, logs


def run_backward(module, arguments, upstream, output, overrides, seed):
    """Gradients by name of the interpreted backward kernel, and its programs' logs of products.

    `upstream` are the gradients of pooled and counts, `output` is that of forward. What
    `grouping_backward_prepare_kernel` computes is computed here with PyTorch.
    """
    tokens, queries, bias = (arguments[name] for name in ("tokens", "queries", "group_bias"))
    batch, groups, width = queries.shape
    if bias is not None:
        bias = bias.expand(batch, groups).contiguous()
    cut = planned(arguments, overrides, backward=True)
    inverse = 1 / (output.counts + arguments["eps"])
    share = upstream[0].float() * inverse[..., None]
    offsets = upstream[1] - (share * output.pooled.float()).sum(-1)
    # Any power of two near the largest share.
    unscale = 2.0 ** share.abs().amax((1, 2)).clamp_min(1e-30).log2().floor()
    column = torch.arange(cut.block_groups)
    group = column % 8 // 2 * (cut.block_groups // 4) + column // 8 * 2 + column % 2
    rows = torch.zeros(batch, 2, cut.block_groups, width, dtype=tokens.dtype)
    for half, values in enumerate((queries, (share / unscale[:, None, None]))):
        rows[:, half, group < groups] = values[:, group[group < groups]].to(tokens.dtype)
    dtype = tokens.dtype if cut.splits == 1 else torch.float32
    d_tokens = torch.full_like(tokens, torch.nan)
    d_queries = torch.full((batch, cut.splits, groups, width), torch.nan, dtype=dtype)
    d_bias = torch.full((batch, cut.splits, groups), torch.nan)
    with record_launches() as launches:
        module.launch_backward(
            cut, tokens, rows.flatten(1, 2), d_tokens, bias, offsets / unscale[:, None], unscale,
            options_of(arguments), output.index, d_queries, d_bias, groups,
        )  # fmt: skip
    (launch,) = launches
    logs = interpret(launch, seed + SEED_OFFSET)
    gradients = {"tokens": d_tokens, "queries": d_queries.sum(1), "group_bias": d_bias.sum(1)}
    return gradients, logs
