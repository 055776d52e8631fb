"""Statistics of every drop pattern: counts per time and place, chi-square against what is due."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.models.content_dropping import motion_weights
from svilm_fast.models.token_dropping import PATTERNS, select_tokens

GRID = (4, 3, 3)
TOTAL = math.prod(GRID)
CLIPS = 3600
# A right pattern fails by chance once in a million seeds: other seeds are tried
# (tests/instruction_sets.py).
RARE = 1e-6


def _seeds(count: int, step: int = 0) -> Tensor:
    return StepSeeds(7, step, torch.arange(count) * 11 + 3).at(Site.TOKEN_DROP)


def _noise(count: int, *, still: bool = False) -> Tensor:
    """Clips uint8 of noise, 2 x 2 pixels and one frame to a token; the same frame if `still`."""
    generator = torch.Generator().manual_seed(5)
    time, height, width = GRID
    shape = (count, 1 if still else time, 2 * height, 2 * width, 3)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return noise.expand(-1, time, -1, -1, -1)


def _kept(pattern: str, rate: float, frames: Tensor) -> Tensor:
    """bool [clips, time, place]."""
    ids = select_tokens(_seeds(len(frames)), GRID, rate=rate, pattern=pattern, frames=frames).ids
    kept = torch.zeros(len(frames), TOTAL, dtype=torch.bool).scatter_(1, ids, True)
    return kept.view(len(frames), GRID[0], -1)


def _one_each(kept: Tensor) -> np.ndarray:
    """How often each token [time, place] is the one drawn of all that a clip keeps.

    Clips are independent, the tokens of a clip are not: so each clip counts once.
    """
    flat = kept.flatten(1)
    drawn = torch.rand(flat.shape, generator=torch.Generator().manual_seed(1))
    chosen = torch.where(flat, drawn, -1.0).argmax(1)
    return torch.bincount(chosen, minlength=TOTAL).view(GRID[0], -1).numpy()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rate", [0.5, 0.85])
def test_no_time_and_no_place_is_preferred(pattern: str, rate: float) -> None:
    counts = _one_each(_kept(pattern, rate, _noise(CLIPS, still=pattern == "motion")))
    assert counts.sum() == CLIPS
    for table in (counts, counts.sum(0), counts.sum(1)):
        assert chisquare(table.ravel()).pvalue > RARE


def test_a_preferred_place_is_found() -> None:
    """The test above can fail: one place is kept half as often as the others."""
    kept = _kept("random", 0.85, _noise(CLIPS))
    kept[::2, :, 0] = False
    assert chisquare(_one_each(kept).sum(0)).pvalue < RARE


def test_counts_of_a_time_and_of_a_place() -> None:
    """15 of 36 tokens stay, or 4 whole places: 3 or 4 of each time, 1 or 2 of each place."""
    frames = _noise(200)
    wanted = {
        "temporal_uniform": ({3, 4}, None),
        "cluster": ({3, 4}, None),
        "spatial_uniform": (None, {1, 2}),
        "tube": ({4}, {0, 4}),
    }
    for pattern in PATTERNS:
        kept = _kept(pattern, 0.6, frames)
        assert set(kept.flatten(1).sum(1).tolist()) == {16 if pattern == "tube" else 15}
        times, places = set(kept.sum(2).flatten().tolist()), set(kept.sum(1).flatten().tolist())
        balanced_times, balanced_places = wanted.get(pattern, (None, None))
        assert len(times) > 2 if balanced_times is None else times == balanced_times, pattern
        assert len(places) > 2 if balanced_places is None else places == balanced_places, pattern


def test_motion_keeps_a_token_as_often_as_its_weight_says() -> None:
    """With one kept token of a clip, the draw follows the weights exactly."""
    frames = _noise(1).clone()
    frames[:, 1:, :4] = frames[:, :1, :4]
    frames[:, 2, 1, 3] += 40
    weights = motion_weights(frames, GRID)[0]
    assert weights.max() > 5 * weights.min() > 0
    kept = _kept("motion", 0.99, frames.expand(20_000, -1, -1, -1, -1))
    assert (kept.flatten(1).sum(1) == 1).all()
    counts = kept.sum(0).flatten().double()
    expected = weights / weights.sum() * len(kept)
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > RARE
    # The uniform draw of a still clip would not pass.
    assert chisquare(counts.numpy()).pvalue < RARE


def test_motion_is_the_change_to_the_frame_before() -> None:
    time, height, width = GRID
    frames = torch.full((1, 2 * time, 2 * height, 2 * width, 3), 100, dtype=torch.uint8)
    frames[0, 3, 2, 4, 1] = 90  # of the second time's second frame, and so of the third's first
    weights = motion_weights(frames, GRID).view(GRID)
    still = weights[0, 0, 0]
    moved = (weights > still).nonzero().tolist()
    assert moved == [[1, 1, 2], [2, 1, 2]]
    assert torch.allclose(weights[1, 1, 2], still + 10)
    single = motion_weights(frames[:, :1], (1, height, width))
    assert (single == 1).all()


def test_cluster_keeps_one_of_each_look_and_prefers_the_lasting_one() -> None:
    """Three looks and three kept tokens of a time: each look is kept in every clip."""
    time, height, width = GRID
    looks = torch.tensor([[10, 10, 200], [10, 90, 200], [90, 90, 200]])
    frames = looks.repeat_interleave(2, 0).repeat_interleave(2, 1).to(torch.uint8)
    frames = frames[None, None, ..., None].expand(400, time, -1, -1, 3).clone()
    # One token changes a little at the second time, and stays like that.
    frames[:, 1:, :2, 4:] = 199
    kept = _kept("cluster", 2 / 3, frames).unflatten(2, (height, width))
    assert (kept.sum((2, 3)) == 3).all()
    for look in (10, 90, 200):
        assert (kept[:, 0] & (looks == look)).flatten(1).any(1).float().mean() > 0.9
    # Of its cluster's three tokens the two that did not change are the denser ones.
    later = kept[:, 1:, :, 2].flatten(0, 1).sum(0)
    assert later[0] < later[1:].min()


def test_clusters_of_a_flat_clip_are_a_uniform_draw() -> None:
    frames = torch.zeros(CLIPS, GRID[0], 2 * GRID[1], 2 * GRID[2], 3, dtype=torch.uint8)
    kept = _kept("cluster", 0.6, frames)
    assert (kept.flatten(1).sum(1) == 15).all()
    assert chisquare(_one_each(kept).ravel()).pvalue > RARE


@pytest.mark.parametrize("pattern", ["motion", "cluster"])
def test_patterns_of_the_content_ask_for_frames(pattern: str) -> None:
    with pytest.raises(ValueError, match="looks at the pixels: give frames"):
        select_tokens(_seeds(1), GRID, rate=0.5, pattern=pattern)


def _result(encoder, frames: Tensor, seeds: StepSeeds) -> tuple[list[Tensor], list[Tensor]]:
    encoder.zero_grad()
    found = encoder.encode_video(frames, seeds)
    outputs = [found.video, found.segments, found.groups]
    (found.video[:, 0].sum() + found.groups.pow(3).sum() + found.segments[:, 0].sum()).backward()
    return outputs, [p.grad for p in encoder.video.parameters() if p.grad is not None]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_dropping_nothing_is_the_plain_path_bit_for_bit(
    pattern: str, make_encoder, frames, seeds
) -> None:
    """A rate that leaves out no whole token selects, and selects everything."""
    plain = make_encoder(drop_path=0.2).float()
    dropping = make_encoder(drop_path=0.2, drop={"rate": 1e-6, "pattern": pattern}).float()
    dropping.load_state_dict(plain.state_dict())
    wanted, found = _result(plain, frames, seeds), _result(dropping, frames, seeds)
    for one, other in zip(wanted, found, strict=True):
        assert len(one) == len(other) > 0
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
