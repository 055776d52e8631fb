"""The floor of a grounding call: FLOPs of its matrix products and the least bytes it must move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from svilm_fast.kernels.registry import OpCost


def grounding_cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """Cost of `grounding_loss` on a case with `batch`, `groups`, `nouns` and `dim`.

    One dot product of length D per (video, group, caption, noun) forward; backward the same again
    and two products for the gradients. Bytes: inputs once forward; inputs and gradients backward.
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
