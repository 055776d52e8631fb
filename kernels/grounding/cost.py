"""Lower bounds of a grounding call: FLOPs of its matrix products and bytes moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from svilm_fast.kernels.registry import OpCost


def grounding_cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """FLOPs and least bytes for `case` = {batch, groups, nouns, dim}.

    Forward: one dot product of length D per (video, group, caption, noun); reads the inputs.
    Backward: recomputes the dot products and adds two products for the gradients; reads the inputs
    and writes their gradients.
    """
    batch, groups, nouns, dim = (case[name] for name in ("batch", "groups", "nouns", "dim"))
    dots = (batch * groups) * (batch * nouns)
    inputs = batch * (groups + nouns) * dim * dtype.itemsize + batch * nouns
    return OpCost(
        forward_flops=2 * dots * dim,
        forward_bytes=inputs,
        backward_flops=6 * dots * dim,
        backward_bytes=2 * inputs,
    )
