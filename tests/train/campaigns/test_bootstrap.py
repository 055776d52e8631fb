"""The interval of a paired difference: coverage, identical rows, pairing, clusters, few seeds."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.train.campaigns.bootstrap import LEAST_SEEDS, Interval, paired_interval

SEEDS, QUERIES, DRAWS = 8, 60, 400


def interval(own: np.ndarray, other: np.ndarray, clusters: np.ndarray | None = None) -> Interval:
    found = paired_interval(own, other, clusters, draws=DRAWS)
    assert found is not None
    return found


def rows(generator: np.random.Generator, difference: float) -> tuple[np.ndarray, np.ndarray]:
    """Two rows whose queries are equally hard for both, with effects of seed and of query."""
    hard = generator.normal(0, 1, (1, QUERIES))
    other = hard + generator.normal(0, 0.3, (SEEDS, QUERIES))
    effects = generator.normal(0, 0.1, (SEEDS, 1)) + generator.normal(0, 0.3, (1, QUERIES))
    noise = generator.normal(0, 0.5, (SEEDS, QUERIES))
    return other + difference + effects + noise, other


@pytest.mark.parametrize("queries", [True, False])
def test_coverage(queries: bool) -> None:
    """300 simulations: 95 % of the intervals cover the difference, give or take 3 deviations.

    Without queries only the seeds are drawn, so the same questions are asked in every simulation.
    """
    generator, clusters = np.random.default_rng(0), np.arange(QUERIES)
    covered = 0
    for _ in range(300):
        own, other = rows(generator, 0.1)
        if queries:
            found = interval(own, other, clusters)
        else:
            fixed = generator.normal(0, 0.1, SEEDS) + 0.1
            found = interval(fixed[:, None], np.zeros((SEEDS, 1)))
        covered += found.low <= 0.1 <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_the_mean_is_inside_and_ends_are_finite() -> None:
    own, other = rows(np.random.default_rng(1), 0.4)
    found = interval(own, other, np.arange(QUERIES))
    assert found.low < (own - other).mean() < found.high
    assert found.queries
    assert not interval(own, other).queries


def test_equal_differences_have_no_interval() -> None:
    """They tell no spread, also where rounding makes them unequal."""
    own, _ = rows(np.random.default_rng(2), 0.0)
    assert paired_interval(own, own.copy(), np.arange(QUERIES)) is None
    assert paired_interval(own + 0.1, own, np.arange(QUERIES)) is None
    summed = np.array([[0.1 + 0.2], [0.3], [0.3], [0.3], [0.3]])
    assert paired_interval(summed, np.full((5, 1), 0.3)) is None


def test_pairing_makes_it_narrower() -> None:
    """Without pairs the seeds and queries of the rows come in another order."""
    generator, clusters = np.random.default_rng(3), np.arange(QUERIES)
    own, other = rows(generator, 0.2)
    paired = interval(own, other, clusters)
    apart = interval(own, other[:, generator.permutation(QUERIES)], clusters)
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)


def test_queries_of_one_video_are_drawn_together() -> None:
    """Four equal queries of a video tell no more than one."""
    own, other = rows(np.random.default_rng(4), 0.2)
    single = interval(own, other, np.arange(QUERIES))
    clusters = np.arange(QUERIES).repeat(4)
    together = interval(own.repeat(4, axis=1), other.repeat(4, axis=1), clusters)
    apart = interval(own.repeat(4, axis=1), other.repeat(4, axis=1), np.arange(4 * QUERIES))
    assert together.low == pytest.approx(single.low)
    assert together.high == pytest.approx(single.high)
    assert apart.high - apart.low < together.high - together.low


def test_clusters_of_different_sizes_keep_the_mean_over_queries() -> None:
    own = np.array([[1.0, 0.0, 0.0, 0.0]] * SEEDS)
    found = paired_interval(own, np.zeros_like(own), np.array([0, 1, 1, 1]), draws=DRAWS)
    assert found is not None
    assert (found.low + found.high) / 2 == pytest.approx(0.25, abs=0.1)
    assert found.low < 0.25 < found.high


def test_seeds_alone_widen_the_interval_for_few_seeds() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    found = paired_interval(values, np.zeros_like(values), draws=20_000)
    assert found is not None
    # t of 4 degrees of freedom: 2.776 x sqrt(2.5 / 5) = 1.963 around 3.
    assert found.low == pytest.approx(3 - 1.963, abs=0.15)
    assert found.high == pytest.approx(3 + 1.963, abs=0.15)


def test_too_few_seeds_have_no_interval() -> None:
    own = np.ones((LEAST_SEEDS - 1, 3))
    assert paired_interval(own, own, np.arange(3)) is None


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds, queries"):
        paired_interval(np.ones((8, 3)), np.ones((8, 2)))
    with pytest.raises(ValueError, match="clusters"):
        paired_interval(np.ones((8, 3)), np.ones((8, 3)), np.arange(2))
