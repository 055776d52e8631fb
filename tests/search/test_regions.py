"""Regions lie on the whole frame where the model's crop and patches lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.inference.model import GroundedNouns, PretrainedModel
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.search.ranking import Moment
from svilm_fast.search.regions import (
    draw_regions,
    frames_of,
    masks_on_frames,
    noun_colours,
    nouns_of,
    place_of,
    show_moment,
)


def grounded(masks: torch.Tensor) -> GroundedNouns:
    nouns = tuple("abc"[: len(masks)])
    empty = torch.zeros(len(masks), 1)
    return GroundedNouns(nouns, empty, empty, masks[0].long(), masks, torch.zeros(1))


def test_masks_lie_in_the_crop(model):
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, 1] = masks[0, 1, 1, 0] = True
    frames = np.zeros((4, 48, 96, 3), np.uint8)
    found = masks_on_frames(grounded(masks), frames, model.settings)
    # The margin is 1.2: of 48 x 96 pixels the model reads rows 4 to 44 and columns 28 to 68.
    early, late = np.zeros((2, 48, 96), bool)
    early[4:24, 48:68] = True
    late[24:44, 28:48] = True
    assert found.shape == (1, 4, 48, 96)
    for place, expected in enumerate((early, early, late, late)):
        assert np.array_equal(found[0, place], expected)


def test_pixels_outside_the_regions_are_darkened_and_coinciding_outlines_are_both_seen():
    frame = np.full((90, 90, 3), 100, np.uint8)
    masks = np.zeros((2, 90, 90), bool)
    masks[:, 30:60, 30:60] = True
    colours = noun_colours(2)
    drawn = draw_regions(frame, masks, colours)
    assert (drawn[:30] == 50).all()
    assert (drawn[30, 30:60] == colours[0]).all()
    assert (drawn[31, 31:59] == colours[1]).all()
    mixed = 0.75 * (0.75 * 100 + 0.25 * colours[0]) + 0.25 * colours[1]
    assert np.abs(drawn[45, 45] - mixed).max() <= 0.5
    assert (draw_regions(frame, masks[:0], colours[:0]) == 50).all()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([], "no region"),
        ([(0, 0)], "top left"),
        ([(2, 1)], "bottom"),
        ([(1, 1)], "centre"),
        ([(1, 2)], "right"),
        ([(row, column) for row in range(3) for column in range(3)], "all over"),
    ],
)
def test_the_place_of_a_region_in_words(cells, expected):
    mask = np.zeros((2, 3, 3), bool)
    for row, column in cells:
        mask[:, row, column] = True
    assert place_of(mask) == expected


def test_nouns_of_a_text(model):
    assert nouns_of("a brown dog runs to a red ball", model) == ["brown dog", "red ball"]
    assert nouns_of("a dog", model, ["cat ", "cat", " "]) == ["cat"]
    encoder = DualEncoder(
        model.settings.model, model.settings.video, model.settings.text, groups=False
    )
    without = PretrainedModel(encoder, model.settings, model.tokenizer)
    assert nouns_of("a brown dog", without) == []
    with pytest.raises(UserError, match="no group tokens"):
        nouns_of("a dog", without, ["dog"])


def test_a_moment_is_grounded_in_its_own_frames(folder, model):
    path: Path = folder / "long.mp4"
    moment = Moment(path, "long.mp4", 2.0, 4.0, 0.5, 4.0)
    shown = show_moment(model, moment, ["square"])
    assert shown.nouns == ("square",)
    assert show_moment(model, moment, []).grounded is None
    # A flat background: the corner's colour says which second a frame is of.
    frames = frames_of(moment, 2, 240, model.settings)
    clip = shown.grounded.clip
    assert frames.shape == (2, 40, 64, 3)
    for mine, read in ((frames[0], clip[0]), (frames[1], clip[-1])):
        assert np.abs(mine[-1, 32].astype(int) - read[-1, 16].numpy()).max() <= 3
    assert np.abs(frames[0].astype(int)[-1, 0] - frames[1][-1, 0]).max() > 10
