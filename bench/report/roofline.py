"""The roofline plot: FLOP/s reached over FLOPs per byte of the floor, under measured ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from svilm_fast.bench.run.record import OWN_PROVIDERS, Record
from svilm_fast.core.units import rate_text
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme

MARKERS = {"forward": "^", "backward": "v", "both": "o"}


def has_roofline(records: Sequence[Record], ceilings: Mapping[str, float]) -> bool:
    """Whether there are ceilings, and records with a floor."""
    known = {"product_flops", "copy_bytes"} <= ceilings.keys()
    return known and any(record.intensity and record.flops_per_s for record in records)


def draw_roofline(records: Sequence[Record], ceilings: Mapping[str, float], theme: Theme) -> Figure:
    """Log-log; a colour per benchmark, a marker per direction, filled for our own code.

    Raises ValueError if `has_roofline` is false.
    """
    if not has_roofline(records, ceilings):
        raise ValueError("no record has a floor, or the run measured no ceilings")
    product, copy = ceilings["product_flops"], ceilings["copy_bytes"]
    points = [record for record in records if record.intensity and record.flops_per_s]
    names = list(dict.fromkeys(record.name for record in points))
    colours = {name: theme.series[i % len(theme.series)] for i, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 5.6), layout="constrained")
    x = np.array([record.intensity for record in points], dtype=float)
    y = np.array([record.flops_per_s for record in points], dtype=float)
    low, high = min(x.min() / 2, product / copy / 4), max(x.max() * 2, product / copy * 4)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    # Points above the ceilings (a cache, a wrong clock, a wrong floor) must stay visible.
    axes.set_ylim(min(y.min() / 3, copy * low), 2.2 * max(product, y.max()))
    _draw_ceilings(figure, axes, product, copy, (low, high), theme)
    for record, px, py in sorted(
        zip(points, x, y, strict=True), key=lambda p: p[0].provider in OWN_PROVIDERS
    ):
        own = record.provider in OWN_PROVIDERS
        axes.scatter(
            px,
            py,
            s=58 if own else 34,
            marker=MARKERS.get(record.direction, "s"),
            facecolor=colours[record.name] if own else "none",
            edgecolor=theme.surface if own else colours[record.name],
            linewidth=0.8 if own else 1.0,
            alpha=1.0 if own else 0.75,
            zorder=4 if own else 3,
        )
    axes.set(xlabel="FLOPs per byte that the floor needs", ylabel="reached, FLOP/s")
    # A narrow range may contain fewer than two powers of ten.
    low_rate, high_rate = axes.get_ylim()
    steps = (1.0,) if high_rate / low_rate > 1e3 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_text(value, "")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()
    _legend(figure, colours, {record.direction for record in points}, points, theme)
    return figure


def _draw_ceilings(
    figure: Figure,
    axes: plt.Axes,
    product: float,
    copy: float,
    limits: tuple[float, float],
    theme: Theme,
) -> None:
    low, high = limits
    ridge = product / copy
    axes.plot([low, ridge, high], [copy * low, product, product], color=theme.ink, linewidth=1.6)
    for share in (0.5, 0.1):
        axes.plot(
            [low, ridge, high],
            [share * copy * low, share * product, share * product],
            color=theme.muted,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
        )
        axes.annotate(
            f"{share:.0%}",
            (high, share * product),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=theme.muted,
        )
    axes.annotate(
        f"product {rate_text(product, 'FLOP/s')}",
        (high, product),
        xytext=(-4, 5),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        fontweight="bold",
    )
    place = low * (ridge / low) ** 0.62
    axes.annotate(
        f"copy {rate_text(copy, 'B/s')}",
        (place, copy * place),
        xytext=(-6, 7),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        fontweight="bold",
        zorder=6,
        bbox={"facecolor": theme.surface, "edgecolor": "none", "pad": 1.5},
    )


def _legend(
    figure: Figure,
    colours: Mapping[str, str],
    directions: set[str],
    points: Sequence[Record],
    theme: Theme,
) -> None:
    def mark(label: str, marker: str, **look: object) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, markersize=7, label=label, **look)  # type: ignore[arg-type]

    handles = [
        mark(name, "o", color=colour, markeredgecolor=theme.surface)
        for name, colour in colours.items()
    ]
    handles += [
        mark(direction, marker, color=theme.muted)
        for direction, marker in MARKERS.items()
        if direction in directions
    ]
    if any(record.provider not in OWN_PROVIDERS for record in points):
        handles.append(mark("ours", "o", color=theme.ink))
        handles.append(mark("peers", "o", markerfacecolor="none", markeredgecolor=theme.ink))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(len(handles), 9),
        handletextpad=0.2,
        columnspacing=1.2,
    )
