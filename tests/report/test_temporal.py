"""The assignment stands beside its mask; the matrix shows its values."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.report.temporal import draw_assignments, draw_similarity, mean_off_diagonal
from svilm_fast.report.theme import LIGHT, THEMES, drawing, rgb


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_the_mask_has_its_two_colours(make_probe, pixels, share_of, theme) -> None:
    own = np.array([True, True, True, False])
    probe = make_probe({"own": own, "assignment": np.full((4, 2), 0.5)})
    with drawing(theme):
        image = pixels(draw_assignments([probe], theme))
    key = 16 * 13 / image[..., 0].size  # the legend's square
    mine = share_of(image, rgb(theme.own)) - key
    others = share_of(image, rgb(theme.pasted)) - key
    assert mine / others == pytest.approx(3, rel=0.2)


def test_values_and_agreement_are_written(make_probe) -> None:
    own = np.array([False, True, True, True])
    a = np.array([[0.9, 0.1], [0.83, 0.17], [0.6, 0.4], [0.25, 0.75]])
    with drawing(LIGHT):
        shown = words(draw_assignments([make_probe({"own": own, "assignment": a})], LIGHT))
    assert [word for word in shown if word in ("own", "pasted")] == ["pasted", "own", "own", "own"]
    assert {"0.90", "0.10", "0.83", "0.17", "0.60", "0.40", "0.25", "0.75"} <= set(shown)
    assert "50% of\nsegments right" in shown


def test_clips_that_were_not_blended_are_left_out(make_probe) -> None:
    with drawing(LIGHT):
        figure = draw_assignments([make_probe(), make_probe(None)], LIGHT)
    assert words(figure).count("paste mask") == 1
    with pytest.raises(ValueError, match="no clip was blended"):
        draw_assignments([make_probe(None)], LIGHT)


def test_the_matrix_shows_its_values(make_probe) -> None:
    matrix = np.array([[1.0, 0.39, 0.92, 0.5]] * 4)
    with drawing(LIGHT):
        probe = make_probe(None, clean=matrix)
        shown = words(draw_similarity([probe], LIGHT))
    assert [word for word in shown if word[:2] in ("0.", "1.")] == [
        "1.00",
        "0.39",
        "0.92",
        "0.50",
    ] * 4


def test_more_alike_is_more_coloured(make_probe, pixels, share_of) -> None:
    with drawing(LIGHT):
        alike = pixels(draw_similarity([make_probe(clean=np.ones((4, 4)))], LIGHT))
        apart = pixels(draw_similarity([make_probe(clean=np.eye(4))], LIGHT))
    strong = rgb(LIGHT.series[0])
    ratio = share_of(alike, strong) / share_of(apart, strong)
    # The second matrix of both pictures has four such cells too: (16 + 4) and (4 + 4) at most.
    assert ratio > 2
    assert share_of(apart, rgb(LIGHT.surface)) > share_of(alike, rgb(LIGHT.surface))


def test_panels_appear_as_they_are_known(make_probe) -> None:
    with drawing(LIGHT):
        two = words(draw_similarity([make_probe()], LIGHT))
        three = words(
            draw_similarity([make_probe({"untrained_similarity": np.ones((4, 4))})], LIGHT)
        )
    assert "cut and pasted" in two
    assert "before training" not in two
    assert "before training" in three
    assert "mean of different segments 1.00" in three


def test_mean_off_diagonal() -> None:
    assert mean_off_diagonal(np.array([[1.0, 0.2], [0.4, 1.0]])) == pytest.approx(0.3)
    assert mean_off_diagonal(np.ones((1, 1))) == 1.0
