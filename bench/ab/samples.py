"""Samples of one benchmark, and the log ratios that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

BASE, HEAD, CONTROL = "base", "head", "control"


@dataclass
class RenewalSamples:
    """Samples of one benchmark from one renewal of all processes, nanoseconds of a batch of calls.

    `order` has the first letters of the sides for each pair (triple with a control); `ns` and
    `waited` have, for each side, a value for each pair.
    """

    restart: int
    renewal: int
    cores: list[int] | None
    calls: int
    order: list[str] = field(default_factory=list)
    ns: dict[str, list[int]] = field(default_factory=dict)
    waited: dict[str, list[int]] = field(default_factory=dict)

    def net(self, side: str) -> list[int]:
        """Nanoseconds without those in which the process waited for its core."""
        return [ns - waited for ns, waited in zip(self.ns[side], self.waited[side], strict=True)]

    def pairs(self, side: str) -> list[float]:
        """The log ratio to base of each pair."""
        both = zip(self.net(side), self.net(BASE), strict=True)
        return [math.log(one / other) for one, other in both]

    def log_ratio(self, side: str) -> float:
        """The log ratio to base of the renewal: what comes from outside only ever slows."""
        return math.log(faster_half(self.net(side)) / faster_half(self.net(BASE)))


def faster_half(values: Sequence[float]) -> float:
    """Mean of the smaller half, rounded up."""
    count = (len(values) + 1) // 2
    return sum(sorted(values)[:count]) / count


def log_ratios(draws: Sequence[RenewalSamples], side: str) -> list[list[float]]:
    """Log ratios of `side` to base, grouped by restart.

    A renewal gives one value; in a restart with a single renewal each pair does.
    """
    by_restart: dict[int, list[RenewalSamples]] = {}
    for draw in draws:
        by_restart.setdefault(draw.restart, []).append(draw)
    return [
        one[0].pairs(side) if len(one) == 1 else [draw.log_ratio(side) for draw in one]
        for _, one in sorted(by_restart.items())
    ]
