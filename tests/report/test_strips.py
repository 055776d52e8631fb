"""Film strips, coloured tokens, spotlights: exact pixels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from svilm_fast.report.strips import (
    NO_GROUP,
    film_strip,
    spotlight,
    tint,
    token_frames,
    upsample,
)

COLOURS = np.array([[250, 0, 0], [0, 200, 0]], np.uint8)


def test_film_strip_keeps_frames_and_fills_gaps() -> None:
    frames = np.stack([np.full((2, 3, 3), 10 * i, np.uint8) for i in range(3)])
    strip = film_strip(frames, gap=1, background=np.array([7, 8, 9], np.uint8))
    assert strip.shape == (2, 11, 3)
    assert strip[0, :, 0].tolist() == [0, 0, 0, 7, 10, 10, 10, 7, 20, 20, 20]
    assert strip[1, 3].tolist() == [7, 8, 9]


def test_token_frames_are_the_middles() -> None:
    frames = np.arange(8)[:, None, None, None] * np.ones((1, 2, 2, 3), int)
    assert token_frames(frames, 4)[:, 0, 0, 0].tolist() == [1, 3, 5, 7]
    assert token_frames(frames, 2)[:, 0, 0, 0].tolist() == [2, 6]
    assert token_frames(frames, 8)[:, 0, 0, 0].tolist() == list(range(8))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40))
def test_upsample_gives_every_cell_its_share(
    rows: int, columns: int, height: int, width: int
) -> None:
    grid = np.arange(rows * columns).reshape(rows, columns)
    large = upsample(grid, height * rows, width * columns)
    assert np.array_equal(large, np.kron(grid, np.ones((height, width), int)))


def test_tint_mixes_the_colour_of_the_token() -> None:
    frame = np.full((4, 4, 3), 100, np.uint8)
    groups = np.array([[0, 1], [NO_GROUP, 0]])
    mixed = tint(frame, groups, COLOURS, strength=0.5)
    assert mixed[0, 0].tolist() == mixed[1, 1].tolist() == [175, 50, 50]
    assert mixed[0, 3].tolist() == [50, 150, 50]
    assert mixed[3, 0].tolist() == [100, 100, 100]
    assert mixed[3, 3].tolist() == [175, 50, 50]


def test_spotlight_lights_one_group_and_outlines_it() -> None:
    frame = np.full((40, 40, 3), 200, np.uint8)
    groups = np.array([[0, 1], [0, 0]])
    lit = spotlight(frame, groups, 1, COLOURS[1], shade=0.5)
    assert lit[10, 30].tolist() == [200, 200, 200]
    assert lit[30, 10].tolist() == [100, 100, 100]
    assert lit[0, 25].tolist() == lit[10, 20].tolist() == lit[19, 30].tolist() == [0, 200, 0]
    assert lit[10, 19].tolist() == [100, 100, 100]
    dark = spotlight(frame, groups, 5, COLOURS[1], shade=0.5)
    assert (dark == 100).all()
