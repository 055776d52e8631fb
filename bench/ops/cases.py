"""Which shapes of an op are measured on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from svilm_fast.kernels.registry import Op

# A call on a few CPU cores should take tens of milliseconds.
_CPU_FLOPS = 4e9
_CPU_BYTES = 256 * 2**20


def cases(op: Op, device: torch.device) -> dict[str, Mapping[str, Any]]:
    """The op's own cases; on CPU those that are small enough, and those made for it."""
    if device.type == "cuda":
        return dict(op.cases)
    fitting = {name: shape for name, shape in op.cases.items() if _fits(op, shape)}
    return {**fitting, **op.sizes.cpu}


def _fits(op: Op, shape: Mapping[str, Any]) -> bool:
    cost = op.cost(shape, torch.float32)
    flops = cost.forward_flops + cost.backward_flops
    return flops <= _CPU_FLOPS and cost.forward_bytes + cost.backward_bytes <= _CPU_BYTES
