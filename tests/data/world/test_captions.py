"""Captions: distinct where they must be, nouns where their spans say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from svilm_fast.data.world import GRAINS, WorldConfig, generate_clip
from svilm_fast.data.world.scene import draw_scene
from svilm_fast.data.world.vocabulary import PHRASES, SIDE_PHRASES
from svilm_fast.data.world.write import plan_split


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("grain", GRAINS)
def test_captions_of_held_out_clips_are_distinct(world, split, grain):
    captions = [sample["captions"][grain] for sample in world.samples(split).values()]
    assert len(captions) == getattr(world.config, split)
    assert len(set(captions)) == len(captions)


def test_two_hundred_test_clips_differ_in_meaning_in_every_grain():
    config = WorldConfig()
    seeds = plan_split(config, "test")
    assert len(seeds) == 200
    meanings = [draw_scene(config, "test", seed).meaning() for seed in seeds]
    for grain in GRAINS:
        assert len({meaning[grain] for meaning in meanings}) == 200


def test_more_captions_than_there_are_is_refused_before_long():
    """Without an end to the misses this draws 300,000 clips."""
    few = WorldConfig(
        test=5000, colors=["red", "blue", "green"], shapes=["circle", "square", "star"]
    )
    told = []
    with pytest.raises(ValueError, match=r"only \d+ distinct captions found for 5,000 clips"):
        plan_split(few, "test", told.append)
    assert 0 < len(told) < 2000


def test_the_order_of_the_names_is_no_other_meaning():
    config = WorldConfig()
    scenes = [draw_scene(config, "train", seed) for seed in range(60)]
    pairs = [scene for scene in scenes if len(scene.objects) == 2]
    for scene in pairs:
        swapped = replace(scene, objects=scene.objects[::-1])
        assert swapped.meaning()["coarse"] == scene.meaning()["coarse"]
        assert (swapped.meaning()["fine"] == scene.meaning()["fine"]) is not scene.in_turn


@pytest.mark.parametrize("wording", ["plain", "varied"])
def test_spans_cut_the_nouns_out_of_the_captions(wording):
    for seed in range(40):
        _, sample = generate_clip(seed, wording=wording, object_counts=(1, 1, 1), size=32)
        for grain in GRAINS:
            caption, nouns = sample["captions"][grain], sample["nouns"][grain]
            for noun in nouns:
                start, end = noun["span"]
                assert caption[start:end] == noun["text"]
                if noun["object"] is not None:
                    thing = sample["objects"][noun["object"]]
                    assert noun["text"] == f"{thing['color']} {thing['shape']}"
                else:
                    assert noun["text"] == f"{sample['background']} background"
            named = [noun["object"] for noun in nouns if noun["object"] is not None]
            assert named == list(range(len(sample["objects"])))


def test_fused_tells_the_actions_and_the_background():
    for seed in range(30):
        _, sample = generate_clip(seed, size=32)
        fused, fine = sample["captions"]["fused"], sample["captions"]["fine"]
        assert fused.endswith(f" on a {sample['background']} background")
        for event in sample["events"]:
            phrase = PHRASES[event["label"]][0]
            if event["label"] in SIDE_PHRASES:
                phrase += SIDE_PHRASES[event["label"]].format(event["side"])
            assert phrase in fused
            assert phrase in fine
        assert (", then " in fused) is sample["in_turn"]


def test_varied_wording_says_the_same_of_the_same_pixels():
    plain_frames, plain = generate_clip(2, wording="plain")
    varied_frames, varied = generate_clip(2, wording="varied")
    assert (plain_frames == varied_frames).all()
    assert plain["events"] == varied["events"]
    spoken = [generate_clip(seed, wording="varied", size=32)[1]["captions"] for seed in range(20)]
    calm = [generate_clip(seed, wording="plain", size=32)[1]["captions"] for seed in range(20)]
    assert sum(one["fine"] != other["fine"] for one, other in zip(spoken, calm)) > 10


def test_the_background_can_go_unmentioned():
    _, sample = generate_clip(1, mention_background=False)
    assert all("background" not in caption for caption in sample["captions"].values())
    assert all(noun["object"] is not None for noun in sample["nouns"]["fused"])
