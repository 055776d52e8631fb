"""Token dropping: counts, balance of every pattern, independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.models.token_dropping import PATTERNS, keep_count, select_tokens

GRID = (4, 6, 6)


def _seeds(count: int) -> Tensor:
    return StepSeeds(1, 2, torch.arange(count) * 37 + 5).at(Site.TOKEN_DROP)


def _noise(count: int, grid: tuple[int, int, int] = GRID) -> Tensor:
    """Clips uint8 [count, ...] of noise, two pixels for every side of a token."""
    time, height, width = grid
    generator = torch.Generator().manual_seed(count)
    shape = (count, 2 * time, 2 * height, 2 * width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _kept(pattern: str, rate: float, count: int = 16, grid: tuple[int, int, int] = GRID) -> Tensor:
    """bool [count, time, height, width]."""
    frames = _noise(count, grid)
    selection = select_tokens(_seeds(count), grid, rate=rate, pattern=pattern, frames=frames)
    assert selection.mask is None
    kept = torch.zeros(count, math.prod(grid), dtype=torch.bool)
    return kept.scatter_(1, selection.ids, True).view(count, *grid)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9, 0.999])
def test_every_clip_keeps_the_same_number_of_distinct_rising_tokens(pattern, rate):
    ids = select_tokens(_seeds(8), GRID, rate=rate, pattern=pattern, frames=_noise(8)).ids
    assert ids.shape == (8, keep_count(GRID, rate, pattern))
    assert (ids.diff(dim=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < math.prod(GRID)


def test_counts_of_the_published_recipe():
    """ViCLIP keeps 157 of 1568 and 205 of 2048 tokens at 90 %."""
    assert keep_count((8, 14, 14), 0.9, "random") == 157
    assert keep_count((8, 16, 16), 0.9, "random") == 205
    assert keep_count((8, 14, 14), 0.9, "tube") == 20 * 8


@pytest.mark.parametrize("rate", [0.5, 0.6])
def test_patterns_are_balanced(rate):
    per_time = _kept("temporal_uniform", rate).flatten(2).sum(2)
    assert (per_time.amax(1) - per_time.amin(1) <= 1).all()
    per_place = _kept("spatial_uniform", rate).flatten(2).sum(1)
    assert (per_place.amax(1) - per_place.amin(1) <= 1).all()
    cells = _kept("stratified", rate).view(16, 2, 2, 3, 2, 3, 2).sum((2, 4, 6)).flatten(1)
    assert (cells.amax(1) - cells.amin(1) <= 1).all()
    tube = _kept("tube", rate)
    assert (tube == tube[:, :1]).all()


def test_random_is_not_balanced_but_fair():
    kept = _kept("random", 0.5, count=2000)
    per_time = kept.flatten(2).sum(2)
    assert (per_time.amax(1) - per_time.amin(1)).max() > 4
    share = kept.double().mean(0)
    assert (share - 0.5).abs().max() < 0.06


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_token_is_kept_as_often_as_any_other(pattern):
    share = _kept(pattern, 0.5, count=2000, grid=(2, 3, 4)).double().mean(0)
    assert (share - 0.5).abs().max() < 0.06


def test_cells_that_do_not_fill_the_grid_keep_their_share():
    kept = _kept("stratified", 0.5, count=500, grid=(3, 5, 5)).double().mean(0)
    assert (kept - kept.mean()).abs().max() < 0.12


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_clip_keeps_its_tokens_in_any_batch(pattern):
    frames = _noise(6)
    whole = select_tokens(_seeds(6), GRID, rate=0.7, pattern=pattern, frames=frames).ids
    alone = select_tokens(_seeds(6)[4:5], GRID, rate=0.7, pattern=pattern, frames=frames[4:5]).ids
    assert torch.equal(whole[4:5], alone)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_range_of_rates_gives_different_lengths(pattern):
    selection = select_tokens(
        _seeds(64), GRID, rate=0.25, rate_max=0.75, pattern=pattern, frames=_noise(64)
    )
    lengths = selection.mask.sum(1)
    assert selection.ids.shape[1] == keep_count(GRID, 0.25, pattern)
    assert lengths.min() >= keep_count(GRID, 0.75, pattern)
    assert len(lengths.unique()) > 5
    for ids, mask in zip(selection.ids, selection.mask, strict=True):
        real = ids[mask]
        assert (real.diff() > 0).all()
        assert mask[: len(real)].all()
    assert selection.ids.max() < math.prod(GRID)


def test_higher_rates_keep_a_subset():
    many = _kept("random", 0.3)
    few = _kept("random", 0.8)
    assert (few <= many).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown drop pattern 'tubes'"):
        select_tokens(_seeds(1), GRID, rate=0.5, pattern="tubes")
    with pytest.raises(ValueError, match="drop rate must lie in"):
        select_tokens(_seeds(1), GRID, rate=1.0)
    with pytest.raises(ValueError, match="drop rate_max must lie in"):
        select_tokens(_seeds(1), GRID, rate=0.5, rate_max=1.5)
