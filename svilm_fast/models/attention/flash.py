"""Attention by the flash-attn package; sequences of different lengths run packed.

Never run with the package itself so far: the calls are tested against doubles of its signatures
(flash-attn 2.8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding, pack, unpack


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: KeyPadding | None,
    query_padding: KeyPadding | None,
    causal: bool = False,
) -> Tensor:
    """See `attend`; needs CUDA and bf16 or fp16."""
    import flash_attn

    deterministic = torch.are_deterministic_algorithms_enabled()
    if padding is None:
        return flash_attn.flash_attn_func(
            query, key, value, deterministic=deterministic, causal=causal
        )
    batch, query_length = query.shape[:2]
    keys = padding.packed
    queries = (query_padding or KeyPadding(padding.mask.new_ones(batch, query_length))).packed
    attended = flash_attn.flash_attn_varlen_func(
        pack(query, queries),
        pack(key, keys),
        pack(value, keys),
        cu_seqlens_q=queries.cumulative,
        cu_seqlens_k=keys.cumulative,
        max_seqlen_q=queries.longest,
        max_seqlen_k=keys.longest,
        deterministic=deterministic,
        causal=causal,
    )
    return unpack(attended, queries, batch, query_length)
