"""The plot of time and memory of a call over the batch, one line per provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from svilm_fast.bench.run.record import OWN_PROVIDERS, Record
from svilm_fast.core.units import bytes_text, time_text
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme


@dataclass(frozen=True)
class Family:
    """Records of one benchmark that differ only in batch and provider."""

    name: str
    sizes: str
    records: tuple[Record, ...]

    @property
    def batches(self) -> set[int]:
        """The batches that were measured."""
        return {record.batch for record in self.records if record.batch is not None}


def families(records: Sequence[Record]) -> list[Family]:
    """For each benchmark the shape with most batches (at least two), both directions together."""
    groups: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[Record]] = {}
    for record in records:
        if record.direction == "both" and record.batch and record.time_ms and record.suite == "ops":
            groups.setdefault((record.name, record.dtype, record.other_sizes), []).append(record)
    best: dict[str, Family] = {}
    for (name, dtype, sizes), members in groups.items():
        texts = [*(f"{key} {value}" for key, value in sizes), dtype]
        family = Family(name, ", ".join(texts), tuple(members))
        if len(family.batches) > max(1, len(best[name].batches) if name in best else 1):
            best[name] = family
    return list(best.values())


def draw_scaling(found: Sequence[Family], theme: Theme) -> Figure:
    """Two charts per family, time and peak memory, both log-log.

    Raises ValueError without a family.
    """
    if not found:
        raise ValueError("no benchmark was measured at two batches of otherwise equal shape")
    figure, grid = plt.subplots(
        len(found), 2, figsize=(PAGE_WIDTH, 2.9 * len(found)), squeeze=False, layout="constrained"
    )
    providers = sorted(
        {record.provider for family in found for record in family.records}, key=_first_own
    )
    colours = {name: theme.series[i % len(theme.series)] for i, name in enumerate(providers)}
    for (time_axes, memory_axes), family in zip(grid, found, strict=True):
        _lines(time_axes, family, "time_ms", colours)
        _lines(memory_axes, family, "peak_extra_bytes", colours)
        time_axes.set_title(f"{family.name}: time of a call")
        memory_axes.set_title(f"memory beyond its inputs ({family.sizes})")
        time_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))
        memory_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    for axes in grid[-1]:
        axes.set_xlabel("batch")
    handles = [
        plt.Line2D([], [], color=colour, marker="o", markersize=4, label=name)
        for name, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _first_own(provider: str) -> tuple[bool, str]:
    return provider not in OWN_PROVIDERS, provider


def _lines(axes: Axes, family: Family, what: str, colours: dict[str, str]) -> None:
    axes.set(xscale="log")
    axes.set_yscale("log", base=2 if what == "peak_extra_bytes" else 10)
    axes.yaxis.set_major_locator(
        LogLocator(base=2 if what == "peak_extra_bytes" else 10, numticks=7)
    )
    for provider, colour in colours.items():
        points = sorted(
            (record.batch, value)
            for record in family.records
            if record.provider == provider and (value := getattr(record, what)) and record.batch
        )
        if points:
            axes.plot(*zip(*points), color=colour, marker="o", markersize=4)
    batches = sorted(family.batches)
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.minorticks_off()
