"""Builds the timed calls of a case."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from svilm_fast.bench.suites.benchmark import CallCost, Prepared
from svilm_fast.bench.suites.proof import Case
from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import OpCost


def prepared(
    case: Case,
    provider: Provider,
    direction: str,
    cost: OpCost | None,
    *,
    units: Mapping[str, float],
    facts: Mapping[str, Any],
    rough: bool = False,
) -> Prepared:
    """A provider of a case in one direction; the graph is built at the first call."""
    calls: list[Any] = []

    def call() -> object:
        if not calls:
            calls.append(case.call(provider, direction))
        return calls[0]()

    return Prepared(
        call=call,
        verify=partial(case.verify, provider, direction, rough=rough),
        cost=None if cost is None else call_cost(cost, direction),
        units=units,
        facts=facts,
        close=calls.clear,
    )


def call_cost(cost: OpCost, direction: str) -> CallCost:
    """The floor of one direction, or of both."""
    if direction == "forward":
        return CallCost(cost.forward_flops, cost.forward_bytes)
    if direction == "backward":
        return CallCost(cost.backward_flops, cost.backward_bytes)
    return CallCost(
        cost.forward_flops + cost.backward_flops, cost.forward_bytes + cost.backward_bytes
    )
