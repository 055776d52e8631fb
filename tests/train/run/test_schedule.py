"""Warm-up and decay as a function of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from svilm_fast.train.config.schema import ScheduleConfig
from svilm_fast.train.run.schedule import learning_rate, warmup_steps_of


def rates(total: int, **settings) -> list[float]:
    schedule = ScheduleConfig(**settings)
    return [learning_rate(step, total, 2.0, schedule) for step in range(total)]


def test_cosine_rises_to_the_peak_and_falls_to_the_floor() -> None:
    values = rates(101, warmup_steps=10, final_fraction=0.1)
    assert values[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(values) == values[10] == 2.0
    assert values[-1] == pytest.approx(0.2)
    middle = (10 + 100) // 2
    assert values[middle] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert all(later <= earlier for earlier, later in pairwise(values[10:]))


def test_linear_falls_evenly() -> None:
    values = rates(11, warmup_steps=0, shape="linear", final_fraction=0.0)
    assert values == pytest.approx([2.0 - 0.2 * step for step in range(11)], abs=1e-12)


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(9, warmup_steps=0, shape="constant")) == {2.0}


def test_a_run_of_one_step_has_a_rate() -> None:
    assert rates(1, warmup_steps=0) == [2.0]


def test_warmup_fraction_counts_all_steps_and_steps_win() -> None:
    assert warmup_steps_of(ScheduleConfig(warmup_fraction=0.25), 40) == 10
    assert warmup_steps_of(ScheduleConfig(warmup_fraction=0.25, warmup_steps=3), 40) == 3
