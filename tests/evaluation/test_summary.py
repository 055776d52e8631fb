"""Recalls, median, mean and bootstrap intervals of given ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svilm_fast.evaluation.metrics import QueryRanks, summarise


def ranks(*higher: int, ties: tuple[int, ...] = ()) -> QueryRanks:
    tied = torch.zeros(len(higher), dtype=torch.int64)
    tied[: len(ties)] = torch.tensor(ties, dtype=torch.int64)
    return QueryRanks(torch.tensor(higher), tied, 100)


def test_hand_case() -> None:
    summary = summarise(ranks(0, 0, 1, 4, 5, 9, 9, 30), resamples=0)
    assert summary.recall == {1: 25.0, 5: 50.0, 10: 87.5}
    assert summary.median_rank == 4.5 + 1
    assert summary.mean_rank == pytest.approx(58 / 8 + 1)
    assert (summary.queries, summary.gallery_size, summary.tied_queries) == (8, 100, 0)
    assert summary.intervals == {}


def test_ties_count_in_expectation() -> None:
    """Two-way tie for place 1, three-way tie for place 1, three-way tie for places 4 to 6."""
    summary = summarise(ranks(0, 0, 3, 20, ties=(1, 2, 2)), resamples=0)
    first, fifth, tenth = (1 / 2 + 1 / 3) / 4, (1 + 1 + 2 / 3) / 4, 3 / 4
    assert summary.recall == pytest.approx({1: 100 * first, 5: 100 * fifth, 10: 100 * tenth})
    assert summary.median_rank == (1 + 4) / 2 + 1
    assert summary.mean_rank == (0.5 + 1 + 4 + 20) / 4 + 1
    assert summary.tied_queries == 3


@pytest.mark.parametrize(("higher", "ties"), [(0, 0), (0, 1), (0, 2), (3, 4), (9, 30), (12, 3)])
def test_hits_and_rank_are_the_means_over_all_orders_of_a_tie(higher: int, ties: int) -> None:
    places = np.arange(higher, higher + ties + 1)
    found = ranks(higher, ties=(ties,))
    for k in (1, 2, 5, 10, 100):
        assert found.hits(k).tolist() == [pytest.approx(np.mean(places < k))]
    assert found.rank.tolist() == [np.mean(places)]


def test_a_tie_moves_the_interval_too() -> None:
    """All queries tie with one wrong answer: every resample has the same R@1 of a half."""
    summary = summarise(ranks(*[0] * 20, ties=(1,) * 20), resamples=50)
    assert summary.recall[1] == 50.0
    assert summary.intervals["R@1"] == (50.0, 50.0)


def test_intervals_follow_the_binomial() -> None:
    higher = torch.tensor([0] * 120 + [50] * 280)
    summary = summarise(
        QueryRanks(higher, torch.zeros(400, dtype=torch.int64), 100), resamples=2000
    )
    low, high = summary.intervals["R@1"]
    spread = 1.96 * 100 * np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(30 - spread, abs=0.7)
    assert high == pytest.approx(30 + spread, abs=0.7)


def test_intervals_are_repeatable_and_hold_the_value() -> None:
    values = ranks(*np.random.default_rng(0).integers(0, 30, 60).tolist())
    first, second = summarise(values, resamples=300), summarise(values, resamples=300)
    assert first == second
    low, high = first.intervals["MeanR"]
    assert low < first.mean_rank < high
    assert set(first.intervals) == {"R@1", "R@5", "R@10", "MedR", "MeanR"}


def test_captions_of_one_video_are_drawn_together() -> None:
    """Ten captions that always succeed or fail together carry the information of one."""
    higher = torch.tensor([0, 50] * 20).repeat_interleave(10)
    values = QueryRanks(higher, torch.zeros(400, dtype=torch.int64), 100)
    alone = summarise(values, resamples=400)
    together = summarise(values, resamples=400, clusters=torch.arange(40).repeat_interleave(10))

    def width(summary: object) -> float:
        low, high = summary.intervals["R@1"]  # type: ignore[attr-defined]
        return high - low

    assert alone.recall == together.recall
    assert width(together) > 2 * width(alone)
