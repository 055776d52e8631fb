"""Comparisons of the rows of a section: intervals of differences, and what was claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svilm_fast.core.outcomes import shares_of
from svilm_fast.core.text import counted
from svilm_fast.train.campaigns.bootstrap import EQUAL, Interval, paired_interval
from svilm_fast.train.campaigns.table import Claim


def add_intervals(section: dict[str, Any]) -> None:
    """Compute the intervals of all rows, over the queries of a metric where all runs share them."""
    compare, rows = section["compare"], section["rows"]
    for label, row in rows.items():
        if compare is None or label == compare:
            continue
        found = {}
        for metric in section["columns"]:
            ends = paired_interval(*paired(section, label, compare, metric))
            if ends is not None:
                found[metric] = asdict(ends)
        row["intervals"] = found


def paired(
    section: Mapping[str, Any], label: str, other: str, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return what two rows measured and the clusters of its queries, for `paired_interval`."""
    both, queries = [section["rows"][each] for each in (label, other)], section["queries"]
    if metric not in queries:
        own, than = (np.array(each["values"][metric])[:, None] for each in both)
        return own, than, None
    clusters = np.array(queries[metric]["clusters"].split(), dtype=np.int64)
    shares = (each["shares"][metric] for each in both)
    own, than = (100 * np.stack([*map(shares_of, each)]) for each in shares)
    return own, than, clusters


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    margin: by how much it holds, mean over seeds; negative where it fails. interval: of the margin;
    None without one. seeds: those whose own margin is positive, of `count`.
    """

    margin: float
    interval: Interval | None
    seeds: int
    count: int

    @property
    def text(self) -> str:
        """Say whether it held by the interval; without one, in how many seeds."""
        if self.interval is None:
            return f"in {self.seeds} of {counted(self.count, 'seed')}"
        if not self.interval.excludes_zero:
            return "open"
        return "held" if self.margin > 0 else "did not hold"


def with_interval(section: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    """Return a claim for the table's JSON, with what it says of this section's rows."""
    than = claim.than or section["compare"]
    own, other, clusters = paired(section, claim.row, than, claim.metric)
    bound = claim.times * other + claim.plus
    above, below = (bound, own) if claim.lower else (own, bound)
    ends = paired_interval(above, below, clusters)
    return claim.model_dump() | {"than": than, "interval": None if ends is None else asdict(ends)}


def verdict(section: Mapping[str, Any], claim: Mapping[str, Any]) -> Verdict:
    """Judge a claim of a section of a table's JSON."""
    own, other = (
        section["rows"][claim[each]]["values"][claim["metric"]] for each in ("row", "than")
    )
    sign = -1 if claim["lower"] else 1
    margins = [
        sign * (mine - claim["times"] * its - claim["plus"])
        for mine, its in zip(own, other, strict=True)
    ]
    rounding = EQUAL * max(map(abs, [*own, *other]))
    ends = claim["interval"]
    return Verdict(
        margin=float(np.mean(margins)),
        interval=None if ends is None else Interval(**ends),
        seeds=sum(margin > rounding for margin in margins),
        count=len(margins),
    )
