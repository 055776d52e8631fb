"""Chooses the kept video tokens whose pixels a clip does not show, from a sample's seed."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.core.philox import uniform
from svilm_fast.models.token_dropping import TokenSelection


def select_masked(seeds: Tensor, kept: TokenSelection, total: int, rate: float) -> Tensor:
    """Choose the masked tokens among the kept ones, uniformly: bool [b, n].

    A clip with n kept tokens has floor(rate * n) masked ones, at least one if n is 2 or more, and
    at least one is left visible. Token l draws with counter l, so that neither the batch nor the
    number of kept tokens changes its number. Fillers are never masked.

    Args:
        seeds: int64 [b].
        kept: the tokens that dropping keeps.
        total: tokens of a clip before any is dropped.
        rate: share of a clip's kept tokens that is masked, in (0, 1).
    """
    drawn = uniform(seeds, torch.arange(total, device=seeds.device)).double()
    scores = drawn.gather(1, kept.ids)
    if kept.mask is None:
        counts = torch.full((len(scores),), scores.shape[1], device=scores.device)
    else:
        scores = scores.masked_fill(~kept.mask, 2.0)  # fillers come last
        counts = kept.mask.sum(dim=1)
    masked = torch.floor(rate * counts.double() + 1e-9).long().clamp_min(1)
    masked = torch.minimum(masked, counts - 1)
    order = scores.argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, places < masked[:, None])
