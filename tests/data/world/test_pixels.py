"""Masks, boxes and the pixels tell the same story."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from svilm_fast.data.world import WorldConfig, decode_mask, generate_clip
from svilm_fast.data.world.backgrounds import TEXTURES, background
from svilm_fast.data.world.masks import encode_mask
from svilm_fast.data.world.render import render_scene
from svilm_fast.data.world.scene import draw_scene
from svilm_fast.data.world.shapes import DISTANCES
from svilm_fast.data.world.vocabulary import BACKGROUNDS, COLORS, SHAPES


def _masks(sample):
    size = sample["width"]
    return np.array(
        [[decode_mask(runs, size, size) for runs in frames] for frames in sample["masks"]]
    )


def _shrunk(mask):
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return inner


def test_boxes_are_the_tight_bounds_of_the_masks(samples):
    for sample in samples:
        for thing, masks in zip(sample["objects"], _masks(sample)):
            assert len(thing["boxes"]) == sample["num_frames"]
            for box, mask in zip(thing["boxes"], masks):
                rows, columns = np.nonzero(mask)
                expected = (
                    [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    if len(rows)
                    else None
                )
                assert box == expected


def test_masks_of_objects_do_not_overlap():
    for seed in range(20):
        _, sample = generate_clip(seed, object_counts=(0, 1, 1))
        assert _masks(sample).sum(axis=0).max() <= 1


def test_pixels_change_exactly_where_an_object_is_painted():
    config = WorldConfig(object_counts=(1.0,))
    for seed in range(12):
        scene = draw_scene(config, "train", seed)
        rendered = render_scene(scene, config.size)
        empty = background(scene.background, scene.background_seed, config.size)
        change = np.abs(rendered.frames / 255 - empty).max(axis=-1)
        path = scene.objects[0].path
        centres = (np.arange(config.size) + 0.5) / config.size
        for frame, mask in enumerate(rendered.masks[0]):
            x, y = path.centres[frame]
            far = np.hypot(centres[None, :] - x, centres[:, None] - y) > 1.5 * path.radii[frame]
            assert change[frame][far].max(initial=0) < 0.02
            assert not (mask & far).any()
            if mask.any():
                # A light object over a light ground may come close in places, not everywhere.
                assert np.median(change[frame][mask]) > 0.08
            else:
                # Nothing of the object is left; at most the rim of its shadow is.
                assert change[frame].max() < 0.2


def test_the_inside_of_a_mask_has_the_objects_color():
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    right = total = 0
    for seed in range(25):
        frames, sample = generate_clip(seed)
        for thing, masks in zip(sample["objects"], _masks(sample)):
            pixels = frames[[_shrunk(mask) for mask in masks]].astype(float)
            if len(pixels) < 50:
                continue
            mean = np.median(pixels, axis=0)
            nearest = names[int((palette @ (mean / np.linalg.norm(mean))).argmax())]
            right += nearest == thing["color"]
            total += 1
    assert total > 25
    assert right == total


def test_an_object_hides_what_is_behind_it():
    config = WorldConfig(object_counts=(0, 1))
    scene = draw_scene(config, "train", 4)
    front = replace(scene.objects[1], path=scene.objects[0].path)
    same_place = replace(scene, objects=(scene.objects[0], front))
    alone = render_scene(replace(scene, objects=(front,)), config.size)
    both = render_scene(same_place, config.size)
    assert np.array_equal(both.masks[1], alone.masks[0])
    assert not (both.masks[0] & both.masks[1]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_drawn_large_and_unlike_one_another(shape):
    axis = np.linspace(-1.4, 1.4, 141)
    x, y = axis[None, :], axis[:, None]
    own = DISTANCES[shape](x, y) < 0
    assert 0.9 < own.any(axis=0).sum() * 0.02 < 2.4
    assert not own[0].any()
    assert not own[:, 0].any()
    for other in set(SHAPES) - {shape}:
        theirs = DISTANCES[other](x, y) < 0
        assert (own & theirs).sum() / (own | theirs).sum() < 0.85


def test_edges_are_smooth():
    frames, sample = generate_clip(3, size=128, colors=("white", "red", "blue"))
    masks = _masks(sample)
    index, frame = np.argwhere(masks.any(axis=(2, 3)))[0]
    mask = masks[index, frame]
    border = mask & ~_shrunk(mask)
    assert len(np.unique(frames[frame][border].reshape(-1, 3), axis=0)) > border.sum() / 2


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_are_muted_and_textured(name):
    assert set(TEXTURES) == set(BACKGROUNDS)
    for seed in range(5):
        painted = background(name, seed, 64)
        assert painted.shape == (64, 64, 3)
        assert painted.dtype == np.float32
        assert (painted.max(axis=-1) - painted.min(axis=-1)).max() < 0.2
        assert painted.std(axis=(0, 1)).max() > 0.01
        assert painted.max() < 0.7


def test_masks_survive_their_run_lengths():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.9, 1.0):
        mask = rng.random((7, 9)) < share
        runs = encode_mask(mask)
        assert np.array_equal(decode_mask(runs, 7, 9), mask)
    assert encode_mask(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("runs", [[0, 100], [3], [-1, 4]])
def test_runs_that_do_not_fit_are_refused(runs):
    with pytest.raises(ValueError, match="3 x 3"):
        decode_mask(runs, 3, 3)
