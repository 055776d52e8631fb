"""Planted bugs of Gluon kernels: what the interpreter or the oracle must say about each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.kernels.gluon_machine import GluonFault

# The outcome where every operation was in order and a result is wrong.
WRONG = "wrong result"
HIDDEN = "no fault"
FAULTS = (
    "missing wait",
    "overwritten buffer",
    "missing fence",
    "deadlock",
    "barrier",
    "pending",
    "memory",
)

# Lines that all kernels with a ring of copies share.
COPY_WAIT = "mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)"
FULL_WAIT = "mbarrier.wait(filled.index(stage), copy // STAGES & 1)"
LAST_WAIT = "dots = warpgroup_mma_wait(0, deps=(dots,))"
INTO = "                ring.index(stage),\n            )"


class WrongResult(AssertionError):
    """A result of an interpreted kernel differs from the oracle's."""


@contextmanager
def comparing() -> Iterator[None]:
    """Raise `WrongResult` where a comparison in the block fails."""
    try:
        yield
    except AssertionError as error:
        raise WrongResult(str(error)) from error


def outcome_of(check: Callable[[], Any]) -> str:
    """`GluonFault.name`, WRONG, or HIDDEN without either. Any other exception passes."""
    try:
        check()
    except GluonFault as fault:
        return fault.name
    except WrongResult:
        return WRONG
    return HIDDEN


def require_caught(check: Callable[[int], Any], outcomes: str, seeds: int = 1) -> None:
    """Require that `check(seed)` has one of the outcomes, "one or another", for each of `seeds`.

    Where HIDDEN is among them, some schedules have no fault, but not all.
    """
    expected = outcomes.split(" or ")
    assert set(expected) <= {*FAULTS, WRONG, HIDDEN}, f"unknown outcome in {outcomes!r}"
    found = [outcome_of(partial(check, seed)) for seed in range(seeds)]
    assert set(found) <= set(expected), f"found {found}, expected {outcomes}"
    assert set(found) != {HIDDEN}, f"no fault in {seeds} schedules, expected {outcomes}"
