"""Which rank is named, and when, from what the ranks report."""

from __future__ import annotations

import pytest

from svilm_fast.core.errors import RankError
from svilm_fast.train.ranks.attribution import Ledger, Member
from svilm_fast.train.ranks.lost_connection import failure_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    made = Ledger(lambda: "distributed.timeout_seconds=8", lambda: 5, clock)
    for rank in range(4):
        made.joined(Member(rank, f"node-{rank // 2}", 1000 + rank))
    return made


def test_nothing_happens_while_nothing_is_reported(ledger: Ledger, clock: Clock) -> None:
    clock.now += 1e6
    assert ledger.decided() is None


def test_ranks_that_die_together_are_named_together(ledger: Ledger, clock: Clock) -> None:
    ledger.lost(2)
    clock.now += 0.1
    ledger.waits(0, 7, "all_reduce (Engine.step)")
    ledger.lost(3)
    assert ledger.decided() is None
    clock.now += 0.25
    verdict = ledger.decided()
    assert verdict.exit_code == 4
    both = "rank 2 (host node-1, process 1002), rank 3 (host node-1, process 1003)"
    assert str(verdict).startswith(f"step 7: {both} exited without an error report")
    assert "while rank 0 waited in all_reduce (Engine.step)" in str(verdict)


def test_a_death_that_nobody_waited_for_is_at_the_step_of_the_first_rank(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.lost(1)
    clock.now += 1
    assert str(ledger.decided()).startswith(
        "step 5: rank 1 (host node-0, process 1001) exited without"
    )


def test_who_reports_nothing_is_silent(ledger: Ledger, clock: Clock) -> None:
    ledger.waits(0, 7, "barrier")
    clock.now += 1
    ledger.waits(1, 7, "barrier")
    ledger.waits(3, 7, "barrier")
    assert ledger.decided() is None
    clock.now += 1
    text = str(ledger.decided())
    assert text.startswith("step 7: rank 2 (host node-1, process 1002) did not respond within ")
    assert "distributed.timeout_seconds=8, while rank 0 waited in barrier" in text


def test_a_collective_that_fails_early_makes_no_other_rank_silent(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.waits(1, 7, "all_reduce (Engine.step)", "unhandled cuda error")
    clock.now += 3
    text = str(ledger.decided())
    assert "all_reduce (Engine.step) failed on rank 1 (host node-0, process 1001)" in text
    assert "unhandled cuda error" in text
    assert "did not respond" not in text


def test_only_a_collective_at_its_timeout_has_waited() -> None:
    assert failure_of(RuntimeError("[gloo/x.cc:1] Timed out waiting 8000ms for recv")) is None
    assert failure_of(RuntimeError("[gloo/x.cc:1] Connection reset\nmore")) == (
        "[gloo/x.cc:1] Connection reset"
    )


def test_a_rank_that_left_in_good_order_is_a_fault_only_for_those_who_wait(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.left(1, 6)
    ledger.lost(1)
    clock.now += 100
    assert ledger.decided() is None
    ledger.waits(0, 7, "barrier")
    clock.now += 100
    assert "rank 1 (host node-0, process 1001) left the run after step 6" in str(ledger.decided())


def test_ranks_that_all_wait_are_in_different_collectives(ledger: Ledger) -> None:
    for rank in range(4):
        ledger.waits(rank, 7, "barrier" if rank else "all_reduce")
    text = str(ledger.decided())
    assert "different collectives: rank 0 at step 7 in all_reduce; rank 1 at step 7 in" in text


def test_the_first_error_of_a_rank_decides_at_once(ledger: Ledger) -> None:
    ledger.lost(3)
    first = RankError("first", 2)
    ledger.stopped(first)
    ledger.stopped(RankError("second", 3))
    assert ledger.decided() is first
