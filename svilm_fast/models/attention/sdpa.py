"""Attention by PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding, earlier


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: KeyPadding | None,
    query_padding: KeyPadding | None,
    causal: bool = False,
) -> Tensor:
    """See `attend`; padding becomes an attention mask, so padded positions are computed."""
    mask = None if padding is None else padding.mask[:, None, None, :]
    if causal and mask is not None:
        mask = mask & earlier(query)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
    )
    return attended.transpose(1, 2)
