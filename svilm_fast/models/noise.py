"""Drop-path and residual dropout drawn from counters, so that a replay draws the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.core.philox import Site, StepSeeds, uniform, uniform4

# Both encoders draw from the same sites; the text encoder's layers are counted from here.
TEXT_LAYER_OFFSET = 1024
# Attention and MLP of a layer use different streams.
BRANCHES = 2


@dataclass(frozen=True)
class ResidualNoise:
    """What scales the branches of one layer; rates in [0, 1), `layer` names the random stream."""

    seeds: StepSeeds
    layer: int
    drop_path: float
    dropout: float

    def apply(self, branch: Tensor, token_ids: Tensor, position: int) -> Tensor:
        """Zeroes whole branches (drop-path) and entries (dropout) and rescales the rest.

        Args:
            branch: [b, L, C].
            token_ids: int64 [L] or [b, L], what a token was numbered before any was dropped.
            position: 0 for attention, 1 for the MLP.
        """
        stream = self.layer * BRANCHES + position
        if self.drop_path > 0:
            counter = torch.zeros(1, dtype=torch.int64, device=branch.device)
            drawn = uniform(self.seeds.at(Site.DROP_PATH, stream), counter)
            branch = branch * _kept(drawn, self.drop_path, branch.dtype)[..., None]
        if self.dropout > 0:
            # One counter gives four numbers.
            quads = -(-branch.shape[-1] // 4)
            channels = torch.arange(quads, device=branch.device)
            counters = (token_ids[..., None] * quads + channels).flatten(-2)
            drawn = uniform4(self.seeds.at(Site.DROPOUT, stream), counters)
            drawn = drawn.view(*branch.shape[:2], quads * 4)[..., : branch.shape[-1]]
            branch = branch * _kept(drawn, self.dropout, branch.dtype)
        return branch


def residual_noise(
    seeds: StepSeeds | None, layer: int, drop_path: float, dropout: float
) -> ResidualNoise | None:
    """Return None if nothing is random, so that rates of 0 cost nothing."""
    if seeds is None or (drop_path == 0 and dropout == 0):
        return None
    return ResidualNoise(seeds, layer, drop_path, dropout)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 at the first layer to `last` at the last one."""
    return [last * layer / max(depth - 1, 1) for layer in range(depth)]


def part_seeds(seeds: StepSeeds, parts: int) -> StepSeeds:
    """Return seeds of [b * parts] parts of the samples (nouns of a caption, small views of a clip).

    They differ from each other and from the sample's own.
    """
    # An odd multiplier spreads the part's number over all 64 bits; int64 wraps on purpose.
    numbers = torch.arange(1, parts + 1, device=seeds.keys.device) * 0x9E3779B97F4A7C1
    return StepSeeds(seeds.run_seed, seeds.step, (seeds.keys[:, None] + numbers).flatten())


def _kept(drawn: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    return (drawn >= rate).to(dtype) / (1 - rate)
