"""Events lie inside the clip and the objects do, then and only then, what they say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from svilm_fast.data.world import WorldConfig
from svilm_fast.data.world.render import render_scene
from svilm_fast.data.world.scene import draw_scene
from svilm_fast.data.world.vocabulary import ACTIONS, DIRECTIONS, SIDES, STAY

ACTIVE = [action for action in ACTIONS if action != STAY]


@pytest.fixture(scope="module")
def deeds():
    """Three objects per action, each with its event: (object, event)."""
    config = WorldConfig()
    found: dict[str, list] = {action: [] for action in ACTIVE}
    for seed in range(400):
        for thing in draw_scene(config, "train", seed).objects:
            if len(thing.events) == 1 and len(found[thing.events[0].action]) < 6:
                found[thing.events[0].action].append((thing, thing.events[0]))
    return found


def test_events_lie_inside_the_clip(samples):
    for sample in samples:
        duration = sample["num_frames"] / sample["fps"]
        assert sample["events"]
        for event in sample["events"]:
            assert 0 <= event["start_s"] < event["end_s"] <= duration
            assert event["label"] in sample["objects"][event["object"]]["motion"].split(" then ")


def test_events_in_turn_follow_one_another(samples):
    in_turn = [sample for sample in samples if sample["in_turn"]]
    assert in_turn
    for sample in in_turn:
        events = sample["events"]
        assert len(events) > 1
        assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(events))


@pytest.mark.parametrize("action", ACTIVE)
def test_nothing_changes_outside_an_event(deeds, action):
    assert len(deeds[action]) >= 3
    for thing, event in deeds[action]:
        path = thing.path
        for values in (path.centres, path.radii, path.angles):
            before, after = values[: event.start + 1], values[event.end :]
            assert np.allclose(before, before[:1])
            assert np.allclose(after, after[-1:])
        assert path.lit[: event.start].all()
        assert path.lit[event.end :].all()


@pytest.mark.parametrize("action", ACTIVE)
def test_objects_do_what_their_event_says(deeds, action):
    for thing, event in deeds[action]:
        path = thing.path
        last = min(event.end, len(path.lit) - 1)
        shift = path.centres[last] - path.centres[event.start]
        growth = path.radii[last] / path.radii[event.start]
        turn = abs(path.angles[last] - path.angles[event.start])
        if action.startswith("move "):
            assert shift @ np.array(DIRECTIONS[action.removeprefix("move ")]) > 0.25
        elif action == "enter":
            assert shift @ np.array(SIDES[event.side]) < -0.25
            assert (np.abs(path.centres[-1] - 0.5) < 0.5).all()
        elif action == "leave":
            assert shift @ np.array(SIDES[event.side]) > 0.25
            assert (np.abs(path.centres[0] - 0.5) < 0.5).all()
        else:
            assert np.allclose(shift, 0)
        assert (growth > 1.4) == (action == "grow")
        assert (growth < 1 / 1.4) == (action == "shrink")
        assert (turn > np.pi / 2) == (action == "spin")
        assert path.lit.all() == (action != "blink")


def _drawn(config, action):
    for seed in range(300):
        scene = draw_scene(config, "train", seed)
        if scene.objects[0].actions == (action,):
            return scene, render_scene(scene, config.size)
    raise AssertionError(f"no clip of {action}")


@pytest.mark.parametrize("action", ACTIVE)
def test_the_pixels_show_the_action(action):
    config = WorldConfig(object_counts=(1.0,), sequences=0.0)
    scene, rendered = _drawn(config, action)
    event = scene.objects[0].events[0]
    masks = rendered.masks[0]
    areas = masks.sum(axis=(1, 2)).astype(float)
    last = min(event.end, config.frames - 1)
    if action.startswith("move "):
        spots = [np.argwhere(masks[frame]).mean(axis=0)[::-1] for frame in (event.start, last)]
        direction = np.array(DIRECTIONS[action.removeprefix("move ")])
        assert (spots[1] - spots[0]) @ direction > 0.25 * config.size
    elif action == "grow":
        assert areas[last] > 2 * areas[event.start]
    elif action == "shrink":
        assert areas[last] < areas[event.start] / 2
    elif action == "spin":
        middle = (event.start + last) // 2
        assert not np.array_equal(masks[event.start], masks[middle])
        assert areas.max() < 1.25 * areas.min()
    elif action == "blink":
        dark = areas == 0
        assert dark.sum() >= 4
        assert not dark[: event.start + 1].any()
    elif action == "enter":
        assert areas[: event.start + 1].max() == 0
        assert areas[last] > 0
    else:
        assert areas[event.start] > 0
        assert areas[event.end :].sum() == 0
        assert areas[-1] < areas[0]


def test_objects_are_large_enough_to_be_recognised():
    config = WorldConfig()
    for seed in range(60):
        for thing in draw_scene(config, "train", seed).objects:
            assert 2 * np.median(thing.path.radii) >= 0.25


def test_resting_objects_rest():
    resting = [
        thing
        for seed in range(100)
        for thing in draw_scene(WorldConfig(), "train", seed).objects
        if not thing.events
    ]
    assert resting
    for thing in resting:
        assert thing.actions == (STAY,)
        assert np.ptp(thing.path.centres, axis=0).max() == 0
        assert thing.path.lit.all()
