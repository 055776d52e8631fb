"""The grounding loss in plain PyTorch, and compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.kernels.peers import Provider, compiled


def eager(groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, scale: Tensor) -> Tensor:
    """All [b, b, K, G] products at once, softmax over the groups, then InfoNCE over the scores."""
    products = torch.einsum("ckd,bgd->bckg", nouns, groups).float()
    region = ((beta * products).softmax(-1) * products).sum(-1)
    weights = noun_mask / noun_mask.sum(1, keepdim=True).clamp(min=1)
    logits = scale * (region * weights).sum(-1)
    valid = noun_mask.any(1)
    count = valid.sum().clamp(min=1)
    positives = logits.diagonal()
    rows = logits.masked_fill(~valid, -torch.inf).logsumexp(1) - positives
    columns = logits.logsumexp(0) - positives
    return (rows + columns).where(valid, 0).sum() / (2 * count)


PEERS: dict[str, Provider] = {"eager": eager, "compile": compiled(eager)}
