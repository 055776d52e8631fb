"""Lower bounds of FLOPs and bytes of a call, with which measurements are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..registry import OpCost


def cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """FLOPs and least bytes for `case` = {videos, texts, dim}.

    Forward: one product of 2 D FLOPs per pair; reads both inputs, writes the row and column
    sums. Backward: recomputes the logits and adds one product per side, 6 D FLOPs per pair; reads
    both inputs and the sums, writes both gradients.
    """
    rows, columns, dim = case["videos"], case["texts"], case["dim"]
    product = 2.0 * rows * columns * dim
    inputs = float(rows + columns) * dim * dtype.itemsize
    sums = 4.0 * (rows + columns)
    return OpCost(
        forward_flops=product,
        forward_bytes=inputs + sums,
        backward_flops=3 * product,
        backward_bytes=2 * inputs + sums,
    )
