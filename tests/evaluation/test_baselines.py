"""Chance, and the matcher that sees only sets of colours."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from svilm_fast.evaluation.baselines import (
    chance_interval,
    colour_set_baseline,
    colours_in_text,
    expected_recall,
)


def clip(*colours: str) -> dict[str, object]:
    return {"objects": [{"color": colour, "shape": "ring"} for colour in colours]}


def test_expected_recall_of_a_hand_case() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    recall = expected_recall(scores, torch.tensor([2, 0, 0]), (1, 2, 3))
    # Query 0: one higher, three tied; query 1: four tied; query 2: alone at the top.
    assert recall[1] == pytest.approx(100 * (0 + 1 / 4 + 1) / 3)
    assert recall[2] == pytest.approx(100 * (1 / 3 + 2 / 4 + 1) / 3)
    assert recall[3] == pytest.approx(100 * (2 / 3 + 3 / 4 + 1) / 3)


def test_expected_recall_agrees_with_random_tie_breaking() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (12, 9))).float()
    right = torch.arange(12) % 9
    expected = expected_recall(scores, right, (1, 5))
    generator = np.random.default_rng(1)
    hits = {1: 0, 5: 0}
    rounds = 3000
    for _ in range(rounds):
        jitter = scores.numpy() + generator.random(scores.shape) / 2
        place = (jitter > jitter[np.arange(12), right][:, None]).sum(axis=1)
        for k in hits:
            hits[k] += int((place < k).sum())
    for k in hits:
        # 4 standard errors of a mean of 36,000 coin flips
        assert 100 * hits[k] / rounds / 12 == pytest.approx(expected[k], abs=4 * 50 / 190)


def test_colour_sets_of_a_hand_case() -> None:
    clips = [clip("red"), clip("red", "red"), clip("red", "blue"), clip("green")]
    captions = ["a red ring", "two Red rings spin", "a blue and a red ring", "a green ring"]
    found = colour_set_baseline(captions, clips, torch.arange(4), (1, 2))
    assert found is not None
    assert found.colours == ("blue", "green", "red")
    assert found.distinct_clip_sets == 3
    # The two clips with only red share the first place: 1/2 each; the other two are alone.
    assert found.recall[1] == pytest.approx(100 * (0.5 + 0.5 + 1 + 1) / 4)
    assert found.recall[2] == pytest.approx(100.0)


def test_the_rule_that_serves_the_captions_better_is_taken() -> None:
    crowd = clip("red", "blue", "green", "white", "purple")
    named = colour_set_baseline(["red and blue", "red"], [crowd, clip("red")], torch.arange(2))
    assert named is not None
    assert (named.rule, named.recall[1]) == ("containment", 100.0)

    crowd = clip("red", "blue", "green", "white", "purple")
    surplus = colour_set_baseline(
        ["red before blue", "all of red blue green white purple"],
        [clip("red"), crowd],
        torch.arange(2),
    )
    assert surplus is not None
    assert (surplus.rule, surplus.recall[1]) == ("jaccard", 100.0)


def test_without_true_colours_there_is_no_baseline() -> None:
    assert colour_set_baseline(["a red ring"], [{"caption": "x"}], torch.tensor([0])) is None
    assert colour_set_baseline([], [], torch.tensor([], dtype=torch.int64)) is None


def test_colours_are_whole_words_and_the_longer_name_wins() -> None:
    colours = ["red", "dark red", "blue"]
    assert colours_in_text("A Dark Red ring, scored", colours) == {"dark red"}
    assert colours_in_text("a blue-red ring", colours) == {"blue", "red"}
    assert colours_in_text("anything", []) == frozenset()


def test_chance_interval_of_a_hand_case() -> None:
    # Two queries, one of two candidates each: 0, 1, 2 hits with 1/4, 1/2, 1/4.
    interval = chance_interval(2, 2, k=1, confidence=0.4)
    assert (interval.low, interval.expected, interval.high) == (50.0, 50.0, 50.0)
    wide = chance_interval(2, 2, k=1, confidence=0.999)
    assert (wide.low, wide.high) == (0.0, 100.0)


def test_chance_interval_holds_what_it_says() -> None:
    interval = chance_interval(200, 200, k=10)
    assert interval.expected == 5.0
    # Exact binomial tails of B(200, 0.05), each at most 0.05 %.
    generator = np.random.default_rng(0)
    draws = 100 * generator.binomial(200, 0.05, 400_000) / 200
    assert (draws < interval.low).mean() < 7e-4
    assert (draws > interval.high).mean() < 7e-4
    assert (draws < interval.low + 0.5).mean() > 3e-4
    assert (draws > interval.high - 0.5).mean() > 3e-4
    assert interval.low in interval
    assert interval.high + 0.5 not in interval


def test_guessing_falls_into_the_interval() -> None:
    generator = random.Random(3)
    hits = sum(generator.randrange(200) < 10 for _ in range(200))
    assert 100 * hits / 200 in chance_interval(200, 200)


def test_a_gallery_smaller_than_k_is_always_hit() -> None:
    interval = chance_interval(5, 4, k=10)
    assert (interval.low, interval.expected, interval.high) == (100.0, 100.0, 100.0)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (5, 5, 1, 1.0)])
def test_bad_input_is_named(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="chance needs"):
        chance_interval(*arguments)
