"""The plot of peers: time and memory relative to our own path in the same run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.text import status_text
from svilm_fast.core.units import bytes_text, ratio_text, time_text
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme

BAR = 0.235  # inches of one bar
# The first of these in a case is the unit. Attention has no path of ours; there it is SDPA.
COMPARED_WITH = ("fused", "svilm", "sdpa", "reference")

STATUSES = {
    "oom": "out of memory",
    "wrong_result": "wrong result",
    "compile_error": "compile error",
}
TICKS = (
    (1e-4, 1e-3, 0.01, 0.1, 1, 10, 100, 1e3, 1e4),
    (0.25, 0.5, 1, 2, 4, 8, 16),
    (0.5, 0.75, 1, 1.5, 2, 3, 4),
    (0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75),
)


@dataclass(frozen=True)
class ComparedCase:
    """One case: our own record and those of the peers, fastest first."""

    title: str
    own: Record
    peers: tuple[Record, ...]
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Time over `own` by provider, from interleaved rounds."""

    @property
    def records(self) -> tuple[Record, ...]:
        """Own first."""
        return (self.own, *self.peers)


def compared_cases(
    records: Sequence[Record], ratios: Sequence[Mapping[str, Any]] = ()
) -> list[ComparedCase]:
    """Cases that were also measured with a peer, forward and backward together.

    ratios: those of `svilm bench peers`, which replace the quotient of two medians.
    """
    groups: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in records:
        if record.direction == "both" and not record.skipped:
            of_case = groups.setdefault((record.name, record.case, record.dtype), {})
            of_case[record.provider] = record
    found = []
    for (name, case, _), members in groups.items():
        first = next((p for p in COMPARED_WITH if p in members and members[p].time_ms), None)
        if first is None or len(members) == 1:
            continue
        own = members.pop(first)
        others = sorted(members.values(), key=lambda record: record.time_ms or math.inf)
        paired = {
            ratio["provider"]: float(ratio["time"])
            for ratio in ratios
            if (ratio["case"], ratio["direction"]) == (f"{name}/{case}", "both")
            and ratio["ours"] == first
        }
        found.append(ComparedCase(f"{name}  {case}", own, tuple(others), paired))
    return found


def ratios_to_eager(records: Sequence[Record]) -> list[float]:
    """Eager's time over ours for every op case that has both."""
    return [
        record.time_ms / case.own.time_ms
        for case in compared_cases([record for record in records if record.suite == "ops"])
        for record in case.peers
        if record.provider == "eager" and record.time_ms and case.own.time_ms
    ]


def draw_comparison(found: Sequence[ComparedCase], theme: Theme) -> Figure:
    """Time left, memory right, relative to the first provider of a case: to the right costs more.

    Raises ValueError without a case.
    """
    if not found:
        raise ValueError("no peer was measured beside an op")
    lines = sum(len(case.records) + 1.6 for case in found)
    figure, (times, memories) = plt.subplots(
        1,
        2,
        figsize=(PAGE_WIDTH, BAR * lines + 0.75),
        sharey=True,
        layout=ConstrainedLayoutEngine(w_pad=0.1),
    )
    place = 0.0
    labels: list[tuple[float, str]] = []
    for case in found:
        times.text(
            0.0,
            place + 0.15,
            case.title,
            transform=times.get_yaxis_transform(),
            fontweight="bold",
            fontsize=9,
            va="center",
            zorder=6,
            parse_math=False,
            bbox={"facecolor": theme.surface, "edgecolor": "none", "pad": 1.5},
        )
        for record in case.records:
            place += 1
            labels.append((place, record.provider))
            paired = case.ratios.get(record.provider)
            _bar(
                times, place, "time_ms", record, case.own, time_text(record.time_ms), theme, paired
            )
            _bar(
                memories,
                place,
                "peak_extra_bytes",
                record,
                case.own,
                bytes_text(record.peak_extra_bytes),
                theme,
            )
        place += 1.6
    times.set_yticks([y for y, _ in labels], [name for _, name in labels])
    times.tick_params(axis="y", length=0, labelcolor=theme.ink)
    times.set_ylim(place - 0.4, -0.7)
    for axes, title in ((times, "Time, first = 1"), (memories, "Peak memory, first = 1")):
        _ratio_axis(axes, title, theme)
    return figure


def _bar(
    axes: Axes,
    place: float,
    what: str,
    record: Record,
    own: Record,
    text: str,
    theme: Theme,
    paired: float | None = None,
) -> None:
    value, one = getattr(record, what), getattr(own, what)
    colour = theme.series[0 if record is own else 1]
    if not value or not one:
        status = status_text(record)
        problem = "" if record.time_ms else STATUSES.get(status, status.split(":")[0])
        axes.text(1.0, place, f" {problem}", va="center", fontsize=8, color=theme.wrong)
        return
    ratio = paired or value / one
    left, width = min(1.0, ratio), abs(ratio - 1)
    if width:
        axes.barh(place, width, left=left, height=0.72, color=colour)
    axes.plot([ratio, ratio], [place - 0.36, place + 0.36], color=colour, linewidth=2)
    label = f" {text}" if record is own else f" {ratio_text(ratio)}  {text}"
    axes.text(max(ratio, 1.0) * 1.02, place, label, va="center", fontsize=8)


def _ratio_axis(axes: Axes, title: str, theme: Theme) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.6)
    axes.set_xlim(low, high * (high / low) ** 0.42)
    axes.axvline(1.0, color=theme.ink, linewidth=0.9, zorder=1)
    axes.set_title(title)
    ticks = next(
        (found for steps in TICKS if len(found := [v for v in steps if low <= v <= high]) > 2),
        [1.0],
    )
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
