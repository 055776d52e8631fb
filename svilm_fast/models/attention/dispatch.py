"""The one attention function of both encoders."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.models.attention.backends import (
    AttentionRequest,
    choose_backend,
    load_backend,
)
from svilm_fast.models.attention.padding import KeyPadding


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding: KeyPadding | None = None,
    query_padding: KeyPadding | None = None,
    backend: str = "auto",
    causal: bool = False,
) -> Tensor:
    """Multi-head softmax attention, logits scaled by d^-1/2.

    Args:
        query: [b, Lq, H, d].
        key: [b, Lk, H, d].
        value: [b, Lk, H, d].
        padding: real keys, bool [b, Lk]; every sequence needs at least one. None: all are real.
        query_padding: real queries, bool [b, Lq]; rows of the others are undefined. None: all real.
        causal: a query attends to no later key; needs Lq = Lk.
        backend: auto, sdpa, flash_attn, xformers or reference.

    Returns:
        [b, Lq, H, d] in the dtype of `query`.

    Raises:
        AttentionUnavailableError: the named backend cannot run on these tensors.
        ValueError: unknown backend.
    """
    name = choice(query.device, query.dtype, query.shape[-1], padding is not None, backend)
    return load_backend(name)(query, key, value, padding, query_padding, causal)


def choice(
    device: torch.device, dtype: torch.dtype, head_dim: int, padded: bool, backend: str
) -> str:
    """Name of the backend; apart from `attend`, so that a compiled block need not trace it."""
    return choose_backend(AttentionRequest(device, dtype, head_dim, padded), backend).name
