"""Lower bounds of FLOPs and bytes: every input is read once, every output is written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..registry import OpCost


def temporal_bce_cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """FLOPs and least bytes for `case` = {batch, segments, width}.

    Forward: two centres and one product per segment. Backward: the same again, the gradient of the
    centres and the gradient of the segments.
    """
    size = float(case["batch"] * case["segments"] * case["width"])
    return OpCost(4 * size, size * dtype.itemsize, 10 * size, 2 * size * dtype.itemsize)


def segment_pool_cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """FLOPs (additions) and least bytes for `case` = {batch, tokens, width, segments}."""
    batch, length, width = case["batch"], case["tokens"], case["width"]
    token_bytes = float(batch * length * width * dtype.itemsize)
    segment_bytes = float(batch * case["segments"] * width * dtype.itemsize)
    size = float(batch * length * width)
    return OpCost(size, token_bytes + segment_bytes, 0.0, segment_bytes + token_bytes)
