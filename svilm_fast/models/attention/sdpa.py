"""Attention by PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: KeyPadding | None,
    query_padding: KeyPadding | None,
) -> Tensor:
    """See `attend`; padding becomes an attention mask, so padded positions are computed."""
    mask = None if padding is None else padding.mask[:, None, None, :]
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return attended.transpose(1, 2)
