"""Recalls, median, mean and bootstrap intervals of given ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svilm_fast.evaluation.metrics import Ranks, summarise


def ranks(*values: float, ties: int = 0) -> Ranks:
    tied = torch.zeros(len(values), dtype=torch.int64)
    tied[:ties] = 1
    return Ranks(torch.tensor(values, dtype=torch.float64), tied, 100)


def test_hand_case() -> None:
    summary = summarise(ranks(0, 0.5, 1, 4, 5, 9, 9.5, 30, ties=2), resamples=0)
    assert summary.recall == {1: 25.0, 5: 50.0, 10: 87.5}
    assert summary.median_rank == 4.5 + 1
    assert summary.mean_rank == pytest.approx(59 / 8 + 1)
    assert (summary.queries, summary.gallery_size, summary.tied_queries) == (8, 100, 2)
    assert summary.intervals == {}


def test_intervals_follow_the_binomial() -> None:
    hits = torch.cat([torch.zeros(120), torch.full((280,), 50.0)]).double()
    summary = summarise(Ranks(hits, torch.zeros(400, dtype=torch.int64), 100), resamples=2000)
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
    rank = torch.tensor([0.0, 50.0] * 20).repeat_interleave(10).double()
    values = Ranks(rank, torch.zeros(400, dtype=torch.int64), 100)
    alone = summarise(values, resamples=400)
    together = summarise(values, resamples=400, clusters=torch.arange(40).repeat_interleave(10))

    def width(summary: object) -> float:
        low, high = summary.intervals["R@1"]  # type: ignore[attr-defined]
        return high - low

    assert alone.recall == together.recall
    assert width(together) > 2 * width(alone)
