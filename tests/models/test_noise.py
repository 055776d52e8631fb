"""Noise follows (run seed, step, sample key, site, layer, original token) and nothing else."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.models.noise import ResidualNoise, drop_path_rates, part_seeds, residual_noise
from svilm_fast.models.text_encoder import TextSequences

NOISY = {"drop_path": 0.4, "dropout": 0.3, "drop": {"rate": 0.3}}


def _part(seeds: StepSeeds, rows: slice) -> StepSeeds:
    return StepSeeds(seeds.run_seed, seeds.step, seeds.keys[rows])


@pytest.mark.parametrize("drop", [{"rate": 0.3}, {"rate": 0.1, "rate_max": 0.7}])
def test_halves_of_a_batch_equal_the_batch(make_encoder, frames, seeds, drop):
    encoder = make_encoder(**NOISY | {"drop": drop})
    whole = encoder.encode_video(frames, seeds)
    halves = [
        encoder.encode_video(frames[rows], _part(seeds, rows))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name in ("video", "segments", "groups", "token_ids"):
        joined = torch.cat([getattr(half, name) for half in halves])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-12)
    for number, found in enumerate(whole.assignments):
        joined = torch.cat([half.assignments[number].index for half in halves])
        assert torch.equal(joined, found.index)


def test_text_halves_equal_the_batch(make_encoder, text, seeds):
    encoder = make_encoder(text={"drop_path": 0.4, "dropout": 0.3})
    tokens, mask = text
    whole = encoder.encode_texts([TextSequences(tokens, mask, seeds)])[0]
    assert not torch.allclose(whole, encoder.encode_text(tokens, mask), atol=1e-3)
    halves = [
        encoder.encode_texts([TextSequences(tokens[rows], mask[rows], _part(seeds, rows))])[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-12)


def test_another_step_draws_other_numbers(make_encoder, frames, seeds):
    encoder = make_encoder(**NOISY)
    again = encoder.encode_video(frames, seeds)
    later = encoder.encode_video(frames, StepSeeds(seeds.run_seed, seeds.step + 1, seeds.keys))
    assert torch.equal(again.video, encoder.encode_video(frames, seeds).video)
    assert not torch.equal(again.token_ids, later.token_ids)


def test_noise_of_a_token_does_not_depend_on_which_others_were_dropped(seeds):
    noise = ResidualNoise(seeds, layer=2, drop_path=0.0, dropout=0.5)
    every = torch.ones(4, 10, 6, dtype=torch.float64)
    kept = torch.tensor([[1, 4, 9], [0, 1, 2], [3, 5, 8], [2, 6, 7]])
    whole = noise.apply(every, torch.arange(10), position=1)
    some = noise.apply(every[:, :3], kept, position=1)
    assert torch.equal(some, whole.gather(1, kept[..., None].expand(-1, -1, 6)))


def test_dropout_keeps_the_mean_and_drop_path_takes_whole_samples():
    many = StepSeeds(0, 0, torch.arange(2000))
    branch = torch.ones(2000, 3, 5, dtype=torch.float64)
    dropped = ResidualNoise(many, 0, drop_path=0.0, dropout=0.25).apply(branch, torch.arange(3), 0)
    assert abs(dropped.mean().item() - 1) < 0.02
    path = ResidualNoise(many, 0, drop_path=0.25, dropout=0.0).apply(branch, torch.arange(3), 0)
    assert (path.flatten(1).amax(1) == path.flatten(1).amin(1)).all()
    assert abs((path[:, 0, 0] == 0).double().mean().item() - 0.25) < 0.03
    assert set(path.unique().tolist()) == {0.0, 1 / 0.75}


def test_branches_and_layers_draw_apart(seeds):
    branch = torch.ones(4, 8, 8)
    draws = [
        ResidualNoise(seeds, layer, 0.0, 0.5).apply(branch, torch.arange(8), position)
        for layer in (0, 1)
        for position in (0, 1)
    ]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(draws[first], draws[second])


def test_rates_of_zero_cost_nothing(seeds):
    assert residual_noise(seeds, 0, 0.0, 0.0) is None
    assert residual_noise(None, 0, 0.5, 0.5) is None


def test_drop_path_rises_with_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_nouns_draw_apart_from_each_other_and_from_the_caption(seeds):
    nouns = part_seeds(seeds, 3)
    assert nouns.keys.shape == (12,)
    drawn = torch.cat([seeds.at(Site.DROPOUT), nouns.at(Site.DROPOUT)])
    assert len(drawn.unique()) == 16
    alone = part_seeds(StepSeeds(seeds.run_seed, seeds.step, seeds.keys[2:3]), 3)
    assert torch.equal(alone.keys, nouns.keys[6:9])
