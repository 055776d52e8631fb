"""Selects the video tokens to keep: random choices from a sample's seed, always equally many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.core.philox import Site, StepSeeds, uniform
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.content_dropping import cluster_kept, motion_scores

PATTERNS = (
    "random",
    "spatial_uniform",
    "temporal_uniform",
    "stratified",
    "tube",
    "motion",
    "cluster",
)
# These look at the clip's pixels; the others need only its seed.
CONTENT_PATTERNS = frozenset({"motion", "cluster"})
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


def kept_tokens(
    video: VideoConfig,
    seeds: StepSeeds | None,
    *,
    batch: int,
    device: torch.device,
    frames: Tensor | None = None,
) -> TokenSelection:
    """Return the tokens that the encoder keeps of each clip, before it embeds a pixel.

    Who decodes only these tokens gets the ids here, with the seeds that the encoder is given.

    Args:
        video: the encoder's settings.
        seeds: randomness of the step (keys int64 [batch]); None: evaluation, no token is dropped.
        batch: clips.
        device: of the ids.
        frames: uint8 [batch, F, H, W, 3]; only for the patterns in `CONTENT_PATTERNS`.
    """
    drop = video.drop
    if seeds is not None and (drop.rate > 0 or drop.rate_max):
        return select_tokens(
            seeds.at(Site.TOKEN_DROP),
            video.grid,
            rate=drop.rate,
            pattern=drop.pattern,
            rate_max=drop.rate_max,
            frames=frames,
        )
    return TokenSelection(torch.arange(video.num_tokens, device=device).expand(batch, -1), None)


def select_tokens(
    seeds: Tensor,
    grid: Grid,
    *,
    rate: float,
    pattern: str = "random",
    rate_max: float | None = None,
    frames: Tensor | None = None,
) -> TokenSelection:
    """Select the tokens to keep, the same number for every clip unless `rate_max` is given.

    Patterns: `random` draws from all tokens; `spatial_uniform` keeps equally many (up to one) at
    every place; `temporal_uniform` at every time; `stratified` in every 2 x 2 x 2 cell; `tube`
    keeps the same places at all times; `motion` draws with odds that rise with a token's change
    between frames; `cluster` keeps one token of each cluster of look-alikes of a time. Token l of
    a clip draws with counter l, so that neither the batch nor the rate changes its number.

    Args:
        seeds: int64 [b].
        grid: token positions along time, height and width.
        rate: share of the tokens that is dropped, in [0, 1).
        pattern: one of `PATTERNS`.
        rate_max: when given, every clip draws its own rate from [rate, rate_max].
        frames: uint8 [b, F, H, W, 3], multiples of the grid, for `motion` and `cluster`.

    Raises:
        ValueError: unknown pattern, a rate outside [0, 1), or missing frames.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"unknown drop pattern {pattern!r}: use one of {', '.join(PATTERNS)}")
    for name, value in (("rate", rate), ("rate_max", rate if rate_max is None else rate_max)):
        if not 0 <= value < 1:
            raise ValueError(f"drop {name} must lie in [0, 1), got {value}")
    if pattern in CONTENT_PATTERNS and frames is None:
        raise ValueError(f"drop pattern {pattern!r} looks at the pixels: give frames")
    total = math.prod(grid)
    kept = keep_count(grid, rate, pattern)
    if rate_max is None:
        if kept == total:
            return TokenSelection(
                torch.arange(total, device=seeds.device).expand(len(seeds), -1), None
            )
        counts = torch.full((len(seeds),), kept, device=seeds.device)
    else:
        counts = _drawn_counts(seeds, grid, rate, rate_max, pattern)
    order = _scores(seeds, grid, pattern, frames, counts, kept).argsort(dim=1, stable=True)
    order = order[:, :kept]
    if rate_max is None:
        return TokenSelection(order.sort(dim=1).values, None)
    mask = torch.arange(kept, device=seeds.device) < counts[:, None]
    # Fillers sort after every kept token.
    shifted = torch.where(mask, order, order + total).sort(dim=1).values
    return TokenSelection(shifted % total, shifted < total)


def _scores(
    seeds: Tensor, grid: Grid, pattern: str, frames: Tensor | None, counts: Tensor, most: int
) -> Tensor:
    """float64 [b, L]; of clip i the counts[i] tokens with the smallest scores are kept.

    No count is above `most`.
    """
    total = math.prod(grid)
    if pattern in CONTENT_PATTERNS:
        assert frames is not None
        drawn = uniform(seeds, torch.arange(total + grid[0], device=seeds.device)).double()
        if pattern == "motion":
            return motion_scores(frames, grid, drawn[:, :total])
        kept = cluster_kept(frames, grid, drawn[:, :total], drawn[:, total:], counts, most)
        return (~kept).double()
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
