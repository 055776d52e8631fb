"""Which rank the others wait for: every rank's time of its own work, compared at each record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from svilm_fast.train.engine.engine import Engine

# From where the console names the slowest rank: its work against the mean of all ranks, and what it
# is above the mean as a share of the whole step. Below, it is noise, or costs next to nothing.
RATIO = 1.2
SHARE_OF_STEP = 0.05


class OwnWork:
    """Times what a rank does in a step before it first has to wait for another rank.

    That is the wait for its batch and all that follows up to the first collective; behind it every
    rank takes as long as the slowest. On a GPU the part behind the batch is timed by events on the
    stream. They are read at a record, long after the step has waited for its loss: nothing is
    synchronised for them.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self._waited, self._steps = 0.0, 0
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def begin(self, waited: float) -> None:
        """A step begins with a batch that was waited for `waited` seconds."""
        self._waited += waited
        self._steps += 1
        self._begun = self._now()

    def end(self) -> None:
        """The first collective is next; further calls in the same step change nothing."""
        if self._begun is not None:
            self._spans.append((self._begun, self._now()))
            self._begun = None

    def take(self) -> float:
        """Return the mean seconds of a step since the last call, 0 without one, and start anew."""
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
    """Let the losses, which hold a step's first collective, end `work`; returns whether they do.

    They cannot under ZeRO 3, whose encoders gather their parameters, nor in a model without a part
    `objectives`: there `work` has to end before forward.
    """
    objectives = getattr(engine.model, "objectives", None)
    if objectives is None or engine.zero_stage == 3:
        return False
    objectives.register_forward_pre_hook(lambda module, inputs: work.end())
    return True


def straggler_figures(seconds: Sequence[float]) -> dict[str, float]:
    """Return what a record says of the ranks' own work, in seconds by rank; nothing for one rank.

    straggler_ratio: of the slowest rank to the mean. straggler_rank: its number. straggler_seconds:
    what it is above the mean, in a step.
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
    """Whether a record's slowest rank is worth a word on the console."""
    return (
        values.get("straggler_ratio", 0.0) > RATIO
        and values["straggler_seconds"] > SHARE_OF_STEP * values["seconds_per_step"]
    )
