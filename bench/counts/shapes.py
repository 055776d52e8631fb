"""The call that is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from svilm_fast.bench.ops.proof import first_output, leaves
from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import Op

WORKSPACE_BYTES = 1 << 20


def both_directions(op: Op, provider: Provider, shape: Mapping[str, Any]) -> Callable[[], object]:
    """Forward and backward of a provider on the op's inputs, float32 on the CPU."""
    inputs = op.make_inputs(shape, torch.float32, "cpu", 0)
    wanted = leaves(inputs)

    def call() -> object:
        output = first_output(provider(**inputs))
        return torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    return call
