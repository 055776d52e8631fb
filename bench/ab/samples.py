"""Samples of one benchmark, and their log ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

BASE, HEAD, CONTROL = "base", "head", "control"


@dataclass
class RenewalSamples:
    """Samples of one benchmark from one renewal: nanoseconds of a batch of calls.

    `order` holds the first letters of the sides for each pair (a triple with a control); `ns` and
    `waited` hold a value per side and pair.
    """

    restart: int
    renewal: int
    cores: list[int] | None
    calls: int
    order: list[str] = field(default_factory=list)
    ns: dict[str, list[int]] = field(default_factory=dict)
    waited: dict[str, list[int]] = field(default_factory=dict)

    def net(self, side: str) -> list[int]:
        """Nanoseconds less those in which the process waited for its core."""
        return [ns - waited for ns, waited in zip(self.ns[side], self.waited[side], strict=True)]

    def pairs(self, side: str) -> list[float]:
        """The log ratio to base of each pair."""
        both = zip(self.net(side), self.net(BASE), strict=True)
        return [math.log(one / other) for one, other in both]

    def log_ratio(self, side: str) -> float:
        """The log ratio to base over the faster halves, because outside influence only slows."""
        return math.log(faster_half(self.net(side)) / faster_half(self.net(BASE)))


def faster_half(values: Sequence[float]) -> float:
    """Mean of the smaller half, rounded up."""
    count = (len(values) + 1) // 2
    return sum(sorted(values)[:count]) / count


def log_ratios(draws: Sequence[RenewalSamples], side: str) -> list[list[float]]:
    """Log ratios of `side` to base, grouped by restart.

    A renewal gives one value; in a restart with a single renewal, each pair gives one.
    """
    by_restart: dict[int, list[RenewalSamples]] = {}
    for draw in draws:
        by_restart.setdefault(draw.restart, []).append(draw)
    return [
        one[0].pairs(side) if len(one) == 1 else [draw.log_ratio(side) for draw in one]
        for _, one in sorted(by_restart.items())
    ]
