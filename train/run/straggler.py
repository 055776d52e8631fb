"""Finds the rank that the others wait for: compares the ranks' own work at each record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from svilm_fast.train.engine.engine import Engine

# The console names the slowest rank if its work exceeds the mean by this ratio, and the excess is
# this share of the step. Smaller differences are noise or cost little.
RATIO = 1.2
SHARE_OF_STEP = 0.05


class OwnWork:
    """Times a rank's work in a step before the first collective, where it waits for the others.

    Own work is the wait for the batch and everything up to the first collective. On a GPU events on
    the stream time the part after the batch. They are read at a record, long after the loss was
    read, so they need no synchronisation.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self._waited, self._steps = 0.0, 0
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def begin(self, waited: float) -> None:
        """Begin a step whose batch took `waited` seconds to arrive."""
        self._waited += waited
        self._steps += 1
        self._begun = self._now()

    def end(self) -> None:
        """End the own work of this step; later calls in the same step do nothing."""
        if self._begun is not None:
            self._spans.append((self._begun, self._now()))
            self._begun = None

    def take(self) -> float:
        """Return the mean seconds per step since the last call (0 without a step), then reset."""
        seconds = self._waited + sum(self._seconds(*span) for span in self._spans)
        steps = self._steps
        self._waited, self._steps, self._spans = 0.0, 0, []
        return seconds / steps if steps else 0.0

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return ended - begun
        return begun.elapsed_time(ended) / 1e3


def losses_end(work: OwnWork, engine: Engine) -> bool:
    """Make the forward of `model.objectives` end `work`; returns whether that is possible.

    The losses hold the first collective of a step, except under ZeRO 3, where the encoders gather
    parameters. There, and in a model without `objectives`, `work` must end before forward.
    """
    objectives = getattr(engine.model, "objectives", None)
    if objectives is None or engine.zero_stage == 3:
        return False
    objectives.register_forward_pre_hook(lambda module, inputs: work.end())
    return True


def straggler_figures(seconds: Sequence[float]) -> dict[str, float]:
    """Return the slowest rank of `seconds` (own work per step, by rank); nothing for one rank.

    straggler_ratio: its time divided by the mean. straggler_rank: its number. straggler_seconds:
    its time minus the mean.
    """
    mean = sum(seconds) / len(seconds)
    if len(seconds) == 1 or mean <= 0:
        return {}
    longest = max(seconds)
    return {
        "straggler_ratio": longest / mean,
        "straggler_rank": seconds.index(longest),
        "straggler_seconds": longest - mean,
    }


def stands_out(values: Mapping[str, float]) -> bool:
    """Return whether the slowest rank of a record is slow enough for the console."""
    return (
        values.get("straggler_ratio", 0.0) > RATIO
        and values["straggler_seconds"] > SHARE_OF_STEP * values["seconds_per_step"]
    )
