"""What a fuzz target is, and how a batch of its inputs is run."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import DataError

from .guard import MEMORY_BYTES, memory_limit, time_limit, watched

# Errors that explain to a user what is wrong with an input; any other exception is a finding.
REFUSALS = (DataError, UserError)


@dataclass(frozen=True)
class Target:
    """One part of the code and its generated inputs.

    Attributes:
        name: as on the command line.
        strategy: draws inputs.
        check: `check(value, folder)` uses one input; `folder` is empty and the working directory.
            It raises one of REFUSALS if the code refuses the input. Any other exception, such as
            an AssertionError of an oracle, is a finding.
        full, short: inputs of `make fuzz` and of the default tests.
        batch: inputs of one batch, the unit in which the full form can be interrupted.
        seconds: time limit of one input.
        shrink: whether to minimise a finding, which runs it many times.
        prepare: loads what the code under test loads only once, before monitoring starts.
    """

    name: str
    strategy: SearchStrategy[Any]
    check: Callable[[Any, Path], None]
    full: int = 15_000
    short: int = 100
    batch: int = 500
    seconds: float = 10.0
    shrink: bool = True
    prepare: Callable[[], object] = lambda: None


@dataclass
class Outcome:
    """What a batch did: inputs tried, how many of them were refused, and the finding, if any."""

    inputs: int = 0
    refused: int = 0
    finding: str | None = None
    error: BaseException | None = field(default=None, repr=False)


def try_one(target: Target, value: Any) -> bool:
    """Check one input under all limits; returns whether it was refused. Raises for a finding."""
    with tempfile.TemporaryDirectory(prefix="svilm-fuzz-") as name, contextlib.chdir(name):
        folder = Path(os.path.realpath(name))
        with memory_limit(MEMORY_BYTES), watched(folder), time_limit(target.seconds):
            try:
                target.check(value, folder)
            except REFUSALS as error:
                refusal = error
            else:
                return False
    assert str(refusal).strip(), f"{type(refusal).__name__} without a message"
    return True


def run_batch(
    target: Target, inputs: int, seed: int, before_input: Callable[[], object] = lambda: None
) -> Outcome:
    """Check `inputs` inputs drawn with `seed`; stops at the first finding and minimises it."""
    outcome = Outcome()
    target.prepare()

    def attempt(value: Any) -> None:
        before_input()
        counted = outcome.error is None
        outcome.inputs += counted
        try:
            refused = try_one(target, value)
        except Exception as error:
            outcome.error = outcome.error or error
            raise
        outcome.refused += refused and counted

    phases = [Phase.generate, Phase.shrink] if target.shrink else [Phase.generate]
    test = settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed)(given(target.strategy)(attempt)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            test()
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", []))
            outcome.error = error
            outcome.finding = f"{type(error).__name__}: {error}\n{notes}".strip()
    return outcome
