"""Attention by xformers; sequences of different lengths run packed under a block-diagonal mask.

Never run with the package itself so far: the calls are tested against doubles of its signatures
(xformers 0.0.35).
"""

from __future__ import annotations

from torch import Tensor

from svilm_fast.models.attention.padding import KeyPadding, pack, unpack


def xformers_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: KeyPadding | None,
    query_padding: KeyPadding | None,
    causal: bool = False,
) -> Tensor:
    """See `attend`; needs CUDA and bf16 or fp16."""
    import xformers.ops as ops

    if padding is None:
        bias = ops.LowerTriangularMask() if causal else None
        return ops.memory_efficient_attention(query, key, value, attn_bias=bias)
    batch, query_length = query.shape[:2]
    keys = padding.packed
    queries = (query_padding or KeyPadding(padding.mask.new_ones(batch, query_length))).packed
    masks = ops.fmha.attn_bias
    kind = masks.BlockDiagonalCausalMask if causal else masks.BlockDiagonalMask
    blocks = kind.from_seqlens(list(queries.lengths), list(keys.lengths), device=query.device)
    attended = ops.memory_efficient_attention(
        pack(query, queries)[None], pack(key, keys)[None], pack(value, keys)[None], attn_bias=blocks
    )
    return unpack(attended[0], queries, batch, query_length)
