"""Selects the video tokens to keep: balanced random choices from a sample's seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.core.philox import uniform

PATTERNS = ("random", "spatial_uniform", "temporal_uniform", "stratified", "tube")
# Side of the cells of `stratified` along time, height and width.
CELL = 2

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class TokenSelection:
    """Kept tokens: `ids` int64 [b, n] rising over (time, height, width); `mask` bool [b, n].

    `mask` is None where every clip keeps n tokens. Where it is false the id is a filler.
    """

    ids: Tensor
    mask: Tensor | None


def keep_count(grid: Grid, rate: float, pattern: str) -> int:
    """Tokens that a clip keeps at a drop rate, at least one (a whole column for `tube`)."""
    time, height, width = grid
    unit = time if pattern == "tube" else 1
    units = time * height * width // unit
    return max(units - math.floor(rate * units + 1e-9), 1) * unit


def select_tokens(
    seeds: Tensor,
    grid: Grid,
    *,
    rate: float,
    pattern: str = "random",
    rate_max: float | None = None,
) -> TokenSelection:
    """Select the tokens to keep, the same number for every clip unless `rate_max` is given.

    Patterns: `random` draws from all tokens; `spatial_uniform` keeps equally many (up to one) at
    every place; `temporal_uniform` at every time; `stratified` in every 2 x 2 x 2 cell; `tube`
    keeps the same places at all times. Token l of a clip draws with counter l, so that neither the
    batch nor the rate changes its number.

    Args:
        seeds: int64 [b].
        grid: token positions along time, height and width.
        rate: share of the tokens that is dropped, in [0, 1).
        pattern: one of `PATTERNS`.
        rate_max: when given, every clip draws its own rate from [rate, rate_max].

    Raises:
        ValueError: unknown pattern, or a rate outside [0, 1).
    """
    if pattern not in PATTERNS:
        raise ValueError(f"unknown drop pattern {pattern!r}: use one of {', '.join(PATTERNS)}")
    for name, value in (("rate", rate), ("rate_max", rate if rate_max is None else rate_max)):
        if not 0 <= value < 1:
            raise ValueError(f"drop {name} must lie in [0, 1), got {value}")
    total = math.prod(grid)
    kept = keep_count(grid, rate, pattern)
    order = _scores(seeds, grid, pattern).argsort(dim=1, stable=True)[:, :kept]
    if rate_max is None:
        return TokenSelection(order.sort(dim=1).values, None)
    counts = _drawn_counts(seeds, grid, rate, rate_max, pattern)
    mask = torch.arange(kept, device=seeds.device) < counts[:, None]
    # Fillers sort after every kept token.
    shifted = torch.where(mask, order, order + total).sort(dim=1).values
    return TokenSelection(shifted % total, shifted < total)


def _scores(seeds: Tensor, grid: Grid, pattern: str) -> Tensor:
    """float64 [b, L]; the tokens with the smallest scores are kept."""
    total = math.prod(grid)
    strata, sizes = _strata(grid, pattern, seeds.device)
    drawn = uniform(seeds, torch.arange(total + len(sizes), device=seeds.device)).double()
    own, shared = drawn[:, :total], drawn[:, total:]
    if pattern == "tube":
        # Equal draws of two places must not mix their tokens.
        return shared[:, strata] + strata * 2.0**-40
    # The rank of a token inside its stratum; strata of unequal size fill up at equal shares.
    order = (strata + own).argsort(dim=1, stable=True)
    place = torch.arange(total, device=seeds.device).expand_as(order)
    position = torch.empty_like(order).scatter_(1, order, place)
    start = sizes.cumsum(0) - sizes
    return (position - start[strata] + shared[:, strata]) / sizes[strata]


def _strata(grid: Grid, pattern: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The stratum of every token, int64 [L], and the strata's sizes, int64 [S]."""
    time, height, width = grid
    axes = [torch.arange(size, device=device) for size in grid]
    t, h, w = torch.meshgrid(*axes, indexing="ij")
    if pattern == "random":
        strata, count = torch.zeros_like(t), 1
    elif pattern == "temporal_uniform":
        strata, count = t, time
    elif pattern == "stratified":
        cells = [-(-size // CELL) for size in grid]
        strata = (t // CELL * cells[1] + h // CELL) * cells[2] + w // CELL
        count = math.prod(cells)
    else:
        strata, count = h * width + w, height * width
    sizes = torch.zeros(count, dtype=torch.int64, device=device)
    flat = strata.flatten()
    return flat, sizes.scatter_add_(0, flat, torch.ones_like(flat))


def _drawn_counts(seeds: Tensor, grid: Grid, rate: float, rate_max: float, pattern: str) -> Tensor:
    """Tokens that each clip keeps, int64 [b], for a rate drawn from [rate, rate_max]."""
    unit = grid[0] if pattern == "tube" else 1
    units = math.prod(grid) // unit
    # A counter that no token and no stratum uses.
    counter = torch.full((1,), 2 * math.prod(grid), device=seeds.device)
    drawn = rate + (rate_max - rate) * uniform(seeds, counter)[:, 0].double()
    dropped = torch.floor(drawn * units + 1e-9).long()
    return (units - dropped).clamp_min(1) * unit
