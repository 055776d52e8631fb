"""The test set holds combinations that training never shows, of words that it does."""

from __future__ import annotations

from itertools import combinations as unordered_pairs

import pytest

from svilm_fast.data.world import SPLITS, WorldConfig
from svilm_fast.data.world.scene import draw_scene

CLIPS = 250


def _shown(config, split):
    """(object, action) deeds, objects and pairs of objects in clips of a split."""
    deeds, pairs = set(), set()
    for seed in range(CLIPS):
        scene = draw_scene(config, split, seed)
        deeds |= {(t.color, t.shape, action) for t in scene.objects for action in t.actions}
        pairs |= {frozenset(pair) for pair in unordered_pairs([t.name for t in scene.objects], 2)}
    return deeds, {deed[:2] for deed in deeds}, pairs


@pytest.fixture(scope="module", params=["object_action", "object"])
def shown(request):
    config = WorldConfig(holdout=request.param)
    return config, {split: _shown(config, split) for split in SPLITS}


def test_deeds_and_pairs_of_the_splits_are_disjoint(shown):
    _, splits = shown
    for first, second in unordered_pairs(SPLITS, 2):
        assert not splits[first][0] & splits[second][0]
        assert not splits[first][2] & splits[second][2]
    assert all(len(pairs) > 5 for _, _, pairs in splits.values())


def test_held_out_objects_are_never_trained_on():
    config = WorldConfig(holdout="object")
    trained, tested = _shown(config, "train")[1], _shown(config, "test")[1]
    assert trained
    assert tested
    assert not trained & tested


@pytest.mark.parametrize("holdout", ["object_action", "object"])
@pytest.mark.parametrize("seed", range(5))
def test_training_may_show_every_word_and_every_pair_of_words(holdout, seed):
    config = WorldConfig(holdout=holdout, seed=seed)
    deeds = config.combinations().deeds
    words = {word for deed in deeds["train"] for word in deed}
    assert words == {*config.colors, *config.shapes, *config.actions}
    if holdout == "object_action":
        for places in ((0, 1), (0, 2), (1, 2)):
            trained = {tuple(deed[place] for place in places) for deed in deeds["train"]}
            tested = {tuple(deed[place] for place in places) for deed in deeds["test"]}
            assert tested <= trained


def test_every_word_is_seen_in_the_clips_of_training(shown):
    config, splits = shown
    seen = {word for deed in splits["train"][0] for word in deed}
    assert seen == {*config.colors, *config.shapes, *config.actions}


def test_about_a_sixth_is_held_out():
    found = WorldConfig().combinations()
    total = sum(len(deeds) for deeds in found.deeds.values())
    assert 0.1 < len(found.deeds["test"]) / total < 0.22
    held = sum(split == "test" for split in found.pairs.values())
    assert held == len(found.pairs) // 6


def test_round_shapes_never_spin():
    deeds = WorldConfig().combinations().deeds
    assert not [d for split in SPLITS for d in deeds[split] if d[1:] == ("circle", "spin")]
    assert [d for split in SPLITS for d in deeds[split] if d[1:] == ("square", "spin")]
