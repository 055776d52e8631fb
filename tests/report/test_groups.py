"""Overlay colours are those of the assignment, and nouns light up their group."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from svilm_fast.evaluation.pointing import NO_GROUP, NounPointing
from svilm_fast.report.groups import draw_groups, group_shares, shown_positions
from svilm_fast.report.strips import tint
from svilm_fast.report.theme import LIGHT, THEMES, drawing, group_colours, rgb


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_tokens_have_the_colours_of_their_groups(make_probe, pixels, share_of, theme) -> None:
    probe = make_probe()
    with drawing(theme):
        image = pixels(draw_groups([probe], theme))
    colours = group_colours(3)
    mixed = tint(probe.frames[0], np.array([[0, 1], [NO_GROUP, 2]]), colours)
    left, right, absent = mixed[0, 0], mixed[0, -1], mixed[-1, -1]
    assert share_of(image, left) > 0.01
    assert share_of(image, left) == pytest.approx(share_of(image, right), rel=0.05)
    assert share_of(image, absent) == 0


def test_halves_of_a_frame_are_on_their_sides(make_probe, pixels, share_of) -> None:
    probe = make_probe()
    with drawing(LIGHT):
        image = pixels(draw_groups([probe], LIGHT))
    colours = tint(probe.frames[0], np.array([[0, 1]]), group_colours(3))

    def columns(colour: np.ndarray) -> np.ndarray:
        found = (np.abs(image.astype(int) - colour.astype(int)).max(axis=-1) <= 3).sum(axis=0)
        return np.flatnonzero(found > 60)

    left, right = columns(colours[0, 0]), columns(colours[0, -1])
    assert len(left) == pytest.approx(len(right), abs=8)
    # Four frames side by side: each starts with group 0 and ends with group 1.
    assert left[0] < right[0]
    assert left[-1] < right[-1]
    assert not set(left) & set(right)


def test_a_noun_lights_the_group_it_attends_to(make_probe, pixels, share_of) -> None:
    """Group 1 is half of every frame; the other noun's group holds no token at all."""
    seen, unseen = make_probe(), make_probe(noun_weights=np.array([[0.1, 0.2, 0.7]]))
    with drawing(LIGHT):
        with_light = pixels(draw_groups([seen], LIGHT))
        without = pixels(draw_groups([unseen], LIGHT))
    grey = [100, 100, 100]
    frames_alone = share_of(without, grey)
    # The lit half keeps its grey, except for the outline.
    assert 1.3 < share_of(with_light, grey) / frames_alone < 1.55
    outline = share_of(with_light, group_colours(3)[1])
    assert outline > share_of(without, group_colours(3)[1])


def test_dropped_tokens_keep_their_pixels(make_probe, pixels, share_of) -> None:
    probe = make_probe(groups=np.full((4, 2, 2), NO_GROUP), nouns=(), noun_weights=np.zeros((0, 3)))
    kept = make_probe(nouns=(), noun_weights=np.zeros((0, 3)))
    with drawing(LIGHT):
        dropped = share_of(pixels(draw_groups([probe], LIGHT)), [100, 100, 100])
        coloured = share_of(pixels(draw_groups([kept], LIGHT)), [100, 100, 100])
    assert dropped == pytest.approx(2 * coloured, rel=0.02)


def test_shares_count_kept_tokens() -> None:
    groups = np.array([[[0, 0], [2, NO_GROUP]]])
    np.testing.assert_allclose(group_shares(groups, 4), [2 / 3, 0, 1 / 3, 0])
    np.testing.assert_allclose(group_shares(np.full((1, 1, 1), NO_GROUP), 2), [0, 0])


def test_positions_are_spread_over_long_clips() -> None:
    assert shown_positions(4).tolist() == [0, 1, 2, 3]
    assert shown_positions(16).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


def test_a_model_without_groups_is_named(make_probe) -> None:
    with pytest.raises(ValueError, match="num_groups=0"):
        draw_groups([make_probe(groups=None)], LIGHT)


def test_the_palette_is_not_the_themes_own() -> None:
    marks = {tuple(rgb(LIGHT.right)), tuple(rgb(LIGHT.wrong))}
    assert not marks & {tuple(colour) for colour in group_colours(32)}


def words(probe: object) -> list[str]:
    with drawing(LIGHT):
        figure = draw_groups([probe], LIGHT)  # type: ignore[list-item]
    found = [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)
    return found


def test_the_legend_names_every_group_with_its_colour(make_probe) -> None:
    probe = make_probe(num_groups=20, noun_weights=np.full((1, 20), 0.05))
    with drawing(LIGHT):
        figure = draw_groups([probe], LIGHT)
    texts = figure.axes[0].texts
    boxes = {patch.get_facecolor()[:3] for patch in figure.axes[0].patches}
    plt.close(figure)
    first = [text.get_text() for text in texts].index("group")
    assert [text.get_text() for text in texts[first + 1 : first + 21]] == list(map(str, range(20)))
    assert {tuple(colour / 255) for colour in group_colours(20)} <= boxes


def test_empty_is_explained_where_it_is_said(make_probe) -> None:
    unseen = words(make_probe(noun_weights=np.array([[0.1, 0.2, 0.7]])))
    assert "group 2, 70% (empty)" in unseen
    assert any("(empty): no token of the clip belongs to the group" in text for text in unseen)
    assert not any("(empty)" in text for text in words(make_probe()))


def test_a_noun_says_how_much_of_its_group_is_on_the_object(make_probe) -> None:
    known = words(make_probe(pointing={"red ring": NounPointing(0.75, 0.1)}))
    assert "group 1, 70%\non the object: 75%" in known
    assert any("where the truth is known" in text for text in known)
    assert not any("on the object" in text for text in words(make_probe()))
