"""Colours can be told apart and text can be read, in both themes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from svilm_fast.report.theme import (
    CONES_TO_LINEAR,
    CONES_TO_OKLAB,
    DARK,
    LIGHT,
    THEMES,
    Theme,
    drawing,
    group_colours,
    hex_colour,
    rgb,
)


def luminance(colour: str) -> float:
    part = rgb(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    light, dark = sorted([luminance(first), luminance(second)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colour_distances(colours: np.ndarray) -> np.ndarray:
    """Distances in OKLab of every pair: uint8 [n, 3] to float [n, n]; 0.02 is just noticeable."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ np.linalg.inv(CONES_TO_LINEAR).T)
    lab = cones @ CONES_TO_OKLAB.T
    return np.linalg.norm(lab[:, None] - lab[None], axis=-1)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_is_readable(theme: Theme) -> None:
    """WCAG AA: 4.5 for text, 3 for lines and large marks."""
    for ground in (theme.page, theme.surface):
        assert contrast(theme.ink, ground) > 10
        assert contrast(theme.muted, ground) > 4.5
        for colour in (*theme.series, theme.right, theme.wrong, theme.own, theme.pasted):
            assert contrast(colour, ground) > 2.7


@pytest.mark.parametrize(("count", "apart"), [(8, 0.17), (16, 0.13), (32, 0.085), (64, 0.06)])
def test_group_colours_differ(count: int, apart: float) -> None:
    """In OKLab, where 0.02 is just noticeable."""
    colours = group_colours(count)
    assert colours.shape == (count, 3)
    found = colour_distances(colours)
    np.fill_diagonal(found, 9)
    assert found.min() > apart


def test_colour_distances_are_those_of_oklab() -> None:
    """White to black is lightness 1 to 0; red and blue as Ottosson's table gives them."""
    white, black, red, blue = ([255] * 3, [0] * 3, [255, 0, 0], [0, 0, 255])
    found = colour_distances(np.array([white, black, red, blue]))
    assert found[0, 1] == pytest.approx(1.0, abs=1e-3)
    lab_red, lab_blue = np.array([0.628, 0.2249, 0.1258]), np.array([0.452, -0.0325, -0.3115])
    assert found[2, 3] == pytest.approx(np.linalg.norm(lab_red - lab_blue), abs=2e-3)


def test_the_first_groups_keep_their_colours() -> None:
    assert np.array_equal(group_colours(8), group_colours(32)[:8])


def test_hex_and_rgb_are_inverse() -> None:
    assert hex_colour(rgb("#0a7fff")) == "#0a7fff"
    assert rgb("#0a7fff").tolist() == [10, 127, 255]


def test_a_theme_ends_with_its_block() -> None:
    before = dict(plt.rcParams)
    with drawing(DARK):
        assert plt.rcParams["text.color"] == DARK.ink
        with drawing(LIGHT):
            assert plt.rcParams["figure.facecolor"] == LIGHT.surface
    assert dict(plt.rcParams) == before
