"""Operators and autograd of the fused path: one operator each way, with fake implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...device import traits
from ...operators import define, dense, first_derivative_only
from ..reference import GroupingOutput
from . import backward as backward_kernels
from . import forward as forward_kernels
from .layout import Plan, plan

_LIBRARY = torch.library.Library("svilm_grouping", "DEF")
_SIGNATURES = {
    "forward": "(Tensor queries, Tensor tokens, Tensor? group_bias, Tensor? seeds,"
    " Tensor? token_ids, Tensor? token_mask, str mode, float temperature, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    "backward": "(Tensor d_pooled, Tensor d_counts, Tensor queries, Tensor tokens,"
    " Tensor? group_bias, Tensor? seeds, Tensor? token_ids, Tensor? token_mask, Tensor pooled,"
    " Tensor counts, Tensor index, str mode, float temperature, float eps, bool need_tokens,"
    " bool need_queries) -> (Tensor, Tensor, Tensor)",
}


def _plan(queries: Tensor, tokens: Tensor, backward: bool) -> Plan:
    batch, length, width = tokens.shape
    return plan(
        batch, length, queries.shape[1], width, tokens.dtype, traits(tokens.device), backward
    )


def forward(queries: Tensor, tokens: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`forward.forward` with the shapes' plan."""
    return forward_kernels.forward(_plan(queries, tokens, backward=False), queries, tokens, *rest)


def backward(
    d_pooled: Tensor, d_counts: Tensor, queries: Tensor, tokens: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward.backward` with the shapes' plan."""
    return backward_kernels.backward(
        _plan(queries, tokens, backward=True),
        d_pooled.contiguous(),
        d_counts.contiguous(),
        queries,
        tokens,
        *rest,
    )


def _fake_forward(
    queries, tokens, group_bias, seeds, token_ids, token_mask, mode, temperature, eps
):
    counts = tokens.new_empty(queries.shape[:2], dtype=torch.float32)
    index = tokens.new_empty(tokens.shape[:2], dtype=torch.int32)
    return tokens.new_empty(queries.shape), counts, index


def _fake_backward(
    d_pooled, d_counts, queries, tokens, group_bias, seeds, token_ids, token_mask, pooled, counts,
    index, mode, temperature, eps, need_tokens, need_queries,
):  # fmt: skip
    return (
        tokens.new_empty(queries.shape if need_queries else (0,)),
        tokens.new_empty(tokens.shape if need_tokens else (0,)),
        counts.new_empty(counts.shape) if need_queries else tokens.new_empty((0,)),
    )


for _implementation, _fake in ((forward, _fake_forward), (backward, _fake_backward)):
    _name = _implementation.__name__
    define(_LIBRARY, _name, _SIGNATURES[_name], _implementation, _fake)


class Grouping(torch.autograd.Function):
    """Saves the inputs, the pooled rows, the counts and the index; noise is drawn again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries, tokens, group_bias, seeds, token_ids, token_mask, mode, temperature, eps
    ):
        pooled, counts, index = torch.ops.svilm_grouping.forward(
            queries, tokens, group_bias, seeds, token_ids, token_mask, mode, temperature, eps
        )
        ctx.save_for_backward(
            queries, tokens, group_bias, seeds, token_ids, token_mask, pooled, counts, index
        )
        ctx.settings = (mode, temperature, eps)
        ctx.mark_non_differentiable(index)
        return pooled, counts, index

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, d_pooled, d_counts, _):  # type: ignore[override]
        need_queries, need_tokens, need_bias = ctx.needs_input_grad[:3]
        group_bias = ctx.saved_tensors[2]
        d_queries, d_tokens, d_bias = torch.ops.svilm_grouping.backward(
            d_pooled, d_counts, *ctx.saved_tensors, *ctx.settings, need_tokens,
            need_queries or need_bias,
        )  # fmt: skip
        return (
            d_queries if need_queries else None,
            d_tokens if need_tokens else None,
            d_bias.to(group_bias.dtype) if need_bias else None,
            *(None,) * 6,
        )


def fused_grouping(
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None,
    *,
    temperature: float,
    mode: str,
    seeds: Tensor | None,
    token_ids: Tensor | None,
    token_mask: Tensor | None,
    eps: float,
) -> GroupingOutput:
    """`grouping` through the Triton kernels; arguments as in `api.grouping`."""
    if group_bias is not None:
        group_bias = group_bias.expand(queries.shape[:2])
    output = Grouping.apply(
        queries.contiguous(),
        tokens.contiguous(),
        dense(group_bias),
        dense(seeds),
        dense(token_ids),
        dense(token_mask),
        mode,
        float(temperature),
        float(eps),
    )
    return GroupingOutput(*output)
