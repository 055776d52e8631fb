"""Lower bounds of FLOPs and bytes: each pass reads tokens once, and backward writes a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..registry import OpCost


def grouping_cost(case: Mapping[str, Any], dtype: torch.dtype) -> OpCost:
    """FLOPs and least bytes for `case` = {batch, tokens, width, groups}.

    Forward: logits and pooling, 2 G C FLOPs per token each. Backward: logits again, the gradient of
    the assignment, the gradient of the queries, and two terms of the gradient of the tokens.
    """
    batch, length, width, groups = (case[key] for key in ("batch", "tokens", "width", "groups"))
    per_product = 2.0 * batch * length * width * groups
    token_bytes = float(batch * length * width * dtype.itemsize)
    group_bytes = float(batch * groups * width * dtype.itemsize)
    index_bytes = 4.0 * batch * length
    return OpCost(
        forward_flops=2 * per_product,
        forward_bytes=token_bytes + 2 * group_bytes + index_bytes,
        backward_flops=5 * per_product,
        backward_bytes=2 * token_bytes + 4 * group_bytes + index_bytes,
    )
