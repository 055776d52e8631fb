"""Sizes small enough to count on any machine, and the call that is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from svilm_fast.bench.ops.proof import first_output, leaves
from svilm_fast.bench.peers import Provider
from svilm_fast.kernels.registry import Op

SMALL: Mapping[str, Mapping[str, Any]] = {
    "grounding": {"batch": 9, "groups": 4, "nouns": 2, "dim": 32},
    "grouping": {"batch": 3, "tokens": 37, "width": 32, "groups": 5},
    "infonce": {"videos": 24, "texts": 24, "dim": 32},
    "segment_pool": {"batch": 3, "tokens": 37, "width": 32, "segments": 8},
    "temporal": {"batch": 5, "segments": 8, "width": 32},
}
# A [B, B] matrix of any of these is larger than all that the chunked paths hold at once.
LARGE: Mapping[str, Mapping[str, Any]] = {
    "grounding": {"batch": 512, "groups": 8, "nouns": 2, "dim": 32},
    "grouping": {"batch": 16, "tokens": 512, "width": 64, "groups": 8},
    "infonce": {"videos": 1024, "texts": 1024, "dim": 64},
    "segment_pool": {"batch": 16, "tokens": 512, "width": 64, "segments": 8},
    "temporal": {"batch": 256, "segments": 8, "width": 64},
}
WORKSPACE_BYTES = 1 << 20


def both_directions(op: Op, provider: Provider, shape: Mapping[str, Any]) -> Callable[[], object]:
    """Forward and backward of a provider on the op's inputs, float32 on the CPU."""
    inputs = op.make_inputs(shape, torch.float32, "cpu", 0)
    wanted = leaves(inputs)

    def call() -> object:
        output = first_output(provider(**inputs))
        return torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    return call
