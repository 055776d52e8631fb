"""The one attention function of both encoders."""

from __future__ import annotations

from torch import Tensor

from svilm_fast.models.attention.backends import AttentionRequest, choose_backend
from svilm_fast.models.attention.padding import KeyPadding


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding: KeyPadding | None = None,
    query_padding: KeyPadding | None = None,
    backend: str = "auto",
) -> Tensor:
    """Multi-head softmax attention, logits scaled by d^-1/2.

    Args:
        query: [b, Lq, H, d].
        key: [b, Lk, H, d].
        value: [b, Lk, H, d].
        padding: real keys, bool [b, Lk]; every sequence needs at least one. None: all are real.
        query_padding: real queries, bool [b, Lq]; rows of the others are undefined. None: all real.
        backend: auto, sdpa, flash_attn, xformers or reference.

    Returns:
        [b, Lq, H, d] in the dtype of `query`.

    Raises:
        AttentionUnavailableError: the named backend cannot run on these tensors.
        ValueError: unknown backend.
    """
    request = AttentionRequest(query.device, query.dtype, query.shape[-1], padding is not None)
    function = choose_backend(request, backend).load()
    return function(query, key, value, padding, query_padding)
