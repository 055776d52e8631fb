"""Initial position tables: what sines and cosines give, and that the default stays random."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from svilm_fast.models.config import VideoConfig
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.tubelet_embedding import TubeletEmbedding


def embedding(**settings):
    values = {"frames": 8, "image_size": 48, "tubelet": 2, "patch": 16, "width": 16, "heads": 2}
    module = TubeletEmbedding(VideoConfig(**values, num_segments=4, **settings))
    initialise(module)
    return module


def wave(position, channel, channels):
    rate = 10_000 ** -((channel % (channels // 2)) / (channels / 2))
    return (math.sin if channel < channels // 2 else math.cos)(position * rate)


def test_sines_and_cosines_of_rows_columns_and_times():
    found = embedding(positions="sincos")
    space = [
        [wave(row, c, 8) for c in range(8)] + [wave(column, c, 8) for c in range(8)]
        for row in range(3)
        for column in range(3)
    ]
    # Four times over a frame of three rows: a time step is three quarters of a row.
    time = [[wave(0.75 * step, c, 16) for c in range(16)] for step in range(4)]
    torch.testing.assert_close(found.space_position, torch.tensor(space), check_device=False)
    torch.testing.assert_close(found.time_position, torch.tensor(time), check_device=False)
    assert found.space_position.requires_grad


def test_the_projection_and_the_default_are_random():
    found, default = embedding(positions="sincos"), embedding()
    assert found.projection.weight.detach().std() == pytest.approx(0.02, rel=0.2)
    assert default.space_position.abs().max() <= 0.04
    assert default.space_position.detach().std() == pytest.approx(0.02, rel=0.2)


def test_a_width_that_does_not_split_into_four_is_refused():
    with pytest.raises(ValidationError, match="video.width=18 must be a multiple of 4"):
        VideoConfig(frames=8, width=18, heads=2, positions="sincos")
