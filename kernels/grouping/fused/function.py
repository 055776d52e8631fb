"""Operators and autograd of the fused path: one operator each way, with fake implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...device import traits
from ...operators import define, dense, first_derivative_only
from ..options import GroupingOptions
from ..reference import GroupingOutput
from . import backward as backward_kernels
from . import forward as forward_kernels
from .layout import GroupingPlan, plan
from .stream import streamable

_LIBRARY = torch.library.Library("svilm_grouping", "DEF")
_CALL = (
    "Tensor queries, Tensor tokens, Tensor? group_bias, Tensor? seeds, Tensor? token_ids,"
    " Tensor? token_mask, str mode, float temperature, float eps"
)
_SIGNATURES = {
    "forward": f"({_CALL}) -> (Tensor, Tensor, Tensor)",
    "backward": f"(Tensor d_pooled, Tensor d_counts, {_CALL}, Tensor pooled, Tensor counts,"
    " Tensor index, bool need_tokens, bool need_queries) -> (Tensor, Tensor, Tensor)",
}


def _plan(
    queries: Tensor, tokens: Tensor, backward: bool, streamable: bool = False
) -> GroupingPlan:
    batch, length, width = tokens.shape
    sizes = (batch, length, queries.shape[1], width, tokens.dtype, traits(tokens.device))
    return plan(*sizes, backward, streamable)


def forward(
    queries: Tensor, tokens: Tensor, group_bias: Tensor | None, *packed: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward.forward` with the plan for these shapes."""
    plan = _plan(queries, tokens, backward=False)
    return forward_kernels.forward(plan, queries, tokens, group_bias, GroupingOptions(*packed))


def backward(
    d_pooled: Tensor,
    d_counts: Tensor,
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward.backward` with the plan for these shapes; `rest` as in the signature."""
    *packed, pooled, counts, index, need_tokens, need_queries = rest
    options = GroupingOptions(*packed)
    return backward_kernels.backward(
        _plan(queries, tokens, backward=True, streamable=streamable(tokens, options)),
        d_pooled.contiguous(),
        d_counts.contiguous(),
        queries,
        tokens,
        group_bias,
        options,
        GroupingOutput(pooled, counts, index),
        need_tokens,
        need_queries,
    )


def _fake_forward(queries, tokens, *_):
    counts = tokens.new_empty(queries.shape[:2], dtype=torch.float32)
    index = tokens.new_empty(tokens.shape[:2], dtype=torch.int32)
    return tokens.new_empty(queries.shape), counts, index


def _fake_backward(d_pooled, d_counts, queries, tokens, *rest):
    counts, _, need_tokens, need_queries = rest[-4:]
    return (
        tokens.new_empty(queries.shape if need_queries else (0,)),
        tokens.new_empty(tokens.shape if need_tokens else (0,)),
        counts.new_empty(counts.shape) if need_queries else tokens.new_empty((0,)),
    )


for _implementation, _fake in ((forward, _fake_forward), (backward, _fake_backward)):
    _name = _implementation.__name__
    define(_LIBRARY, _name, _SIGNATURES[_name], _implementation, _fake)


class Grouping(torch.autograd.Function):
    """Saves the inputs, `pooled`, `counts` and `index`; backward regenerates the noise."""

    @staticmethod
    def forward(ctx: Any, *call: Any):  # type: ignore[override]
        pooled, counts, index = torch.ops.svilm_grouping.forward(*call)
        ctx.save_for_backward(*call[:6], pooled, counts, index)
        ctx.settings = call[6:]
        ctx.mark_non_differentiable(index)
        return pooled, counts, index

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, d_pooled, d_counts, _):  # type: ignore[override]
        need_queries, need_tokens, need_bias = ctx.needs_input_grad[:3]
        saved = ctx.saved_tensors
        d_queries, d_tokens, d_bias = torch.ops.svilm_grouping.backward(
            d_pooled, d_counts, *saved[:6], *ctx.settings, *saved[6:], need_tokens,
            need_queries or need_bias,
        )  # fmt: skip
        return (
            d_queries if need_queries else None,
            d_tokens if need_tokens else None,
            d_bias.to(saved[2].dtype) if need_bias else None,
            *(None,) * 6,
        )


def fused_grouping(
    queries: Tensor, tokens: Tensor, group_bias: Tensor | None, options: GroupingOptions
) -> GroupingOutput:
    """`api.grouping` through the Triton kernels, without its checks."""
    if group_bias is not None:
        group_bias = group_bias.expand(queries.shape[:2])
    *tensors, mode, temperature, eps = options.packed()
    dense_tensors = (dense(value) for value in (queries, tokens, group_bias, *tensors))
    return GroupingOutput(*Grouping.apply(*dense_tensors, mode, temperature, eps))
