"""Boundaries and similarities of segments on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.evaluation.boundaries import (
    SegmentSimilarity,
    boundaries_of,
    explained_variances,
    found_boundaries,
    possible_boundaries,
    similarity_across,
)

FOUR = possible_boundaries(4, 0.5, 1.0)


def test_the_boundaries_that_four_segments_can_have() -> None:
    """Runs of two or three own segments; the two halves have the same boundary."""
    assert FOUR == [(1,), (1, 3), (2,), (3,)]
    assert possible_boundaries(2, 0.5, 1.0) == [(1,)]


@pytest.mark.parametrize(
    ("own", "boundaries"),
    [([1, 1, 0, 0], (2,)), ([0, 0, 1, 1], (2,)), ([0, 1, 1, 0], (1, 3)), ([0, 1, 1, 1], (1,))],
)
def test_boundaries_of_a_mask(own: list[int], boundaries: tuple[int, ...]) -> None:
    assert boundaries_of(np.array(own, bool)) == boundaries


def test_explained_variance_by_hand() -> None:
    """Numbers 0, 0, 3, 3: the halves differ by 3; 1 | 3 by 2; the middle from the ends by 0."""
    found = explained_variances(np.array([[0.0], [0.0], [3.0], [3.0]]), FOUR)
    assert found == pytest.approx([3 / 4 * 2**2, 0.0, 4 / 4 * 3**2, 3 / 4 * 2**2])


@pytest.mark.parametrize("own", [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1]])
def test_two_kinds_of_segments_are_found(own: list[int]) -> None:
    mask = np.array(own, bool)
    features = np.where(mask[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    assert found_boundaries(features, mask, FOUR) == 1.0
    others = [each for each in FOUR if each != boundaries_of(mask)]
    assert len(others) == 3
    wrong = np.array([1, 0, 0, 0] if mask[0] == mask[1] else [1, 1, 0, 0], bool)
    assert found_boundaries(features, wrong, FOUR) == 0.0


def test_equal_segments_share_the_hit() -> None:
    assert found_boundaries(np.ones((4, 3)), np.array([1, 1, 0, 0], bool), FOUR) == 0.25


def test_noise_is_right_about_as_often_as_a_guess() -> None:
    generator, own = np.random.default_rng(0), np.array([0, 1, 1, 0], bool)
    hits = [found_boundaries(generator.normal(size=(4, 8)), own, FOUR) for _ in range(2000)]
    # The middle against the ends and the two halves are balanced, which noise prefers a little.
    assert 0.15 < np.mean(hits) < 0.45


def test_similarities_by_hand() -> None:
    """Two equal directions and one at a right angle: cosines 1, 0 and 0."""
    features = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    assert SegmentSimilarity.of(features) == SegmentSimilarity(pytest.approx(1 / 3), 0.0, 1.0)
    own = np.array([True, True, False])
    assert similarity_across(features, own) == (pytest.approx(1.0), pytest.approx(0.0))
