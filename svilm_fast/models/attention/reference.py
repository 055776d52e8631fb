"""Attention written out: the oracle of the other backends, and what FLOPs are counted on."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding, earlier


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: KeyPadding | None,
    query_padding: KeyPadding | None,
    causal: bool = False,
) -> Tensor:
    """See `attend`; the softmax runs in fp32 (float64 for float64)."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if padding is not None:
        logits = logits.masked_fill(~padding.mask[:, None, None, :], float("-inf"))
    if causal:
        logits = logits.masked_fill(~earlier(query), float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1).to(value.dtype), value)
