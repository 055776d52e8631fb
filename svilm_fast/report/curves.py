"""Training curves from metrics.jsonl, and the bars of the retrieval table."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from svilm_fast.core.metric_names import current_name, namespace_of
from svilm_fast.core.records import read_records
from svilm_fast.core.text import counted
from svilm_fast.evaluation.result import RetrievalResult
from svilm_fast.objectives.base import Metric
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme

log = logging.getLogger(__name__)

Series = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Panel:
    """One small chart: title, the names of its lines in the log with their labels, the unit.

    measured: the values vary from step to step and are smoothed; false for a schedule, a parameter
    or an evaluation.
    """

    title: str
    lines: tuple[tuple[str, str], ...] = ()
    percent: bool = False
    logarithmic: bool = False
    measured: bool = True


# Panels without lines get them from the metrics of the task.
PANELS = (
    Panel("Loss", (("loss", "total"),)),
    Panel("Loss parts"),
    Panel("Accuracy in the batch, %", percent=True),
    Panel(
        "Held-out text to video, %",
        (
            ("retrieval/t2v_R@1", "R@1"),
            ("retrieval/t2v_R@5", "R@5"),
            ("retrieval/t2v_R@10", "R@10"),
        ),
        measured=False,
    ),
    Panel("Scales", measured=False),
    Panel("Empty groups, %", (("empty_group_rate", "groups without a token"),), percent=True),
    Panel("Clips per second", (("clips_per_second", "all ranks"),)),
    Panel("Gradient norm", (("gradient_norm", "before clipping"),), logarithmic=True),
    Panel("Learning rate", (("learning_rate", "learning rate"),), measured=False),
)
# Names of the same metrics in other logs.
ALIASES = {"lr": "learning_rate", "grad_norm": "gradient_norm"}
TRAINING = "train/"  # prefix of the training metrics in other logs


def read_metrics(path: str | Path) -> Series:
    """Read a metrics.jsonl: name to (steps, values), both float64 [n], in step order.

    Nulls and values that are not finite are left out. So are damaged lines; a warning gives their
    number.
    """
    records, damaged = read_records(Path(path).read_bytes())
    if damaged:
        log.warning("%s: %s left out", path, counted(damaged, "damaged line"))
    points: dict[str, dict[int, float]] = {}
    for _, record in records:
        step = record["step"]
        for key, value in record.items():
            name = current_name(key.removeprefix(TRAINING))
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                points.setdefault(ALIASES.get(name, name), {})[step] = float(value)
    return {name: _sorted(values) for name, values in points.items()}


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Running mean over `reach` neighbours on either side, fewer towards the ends.

    The window is symmetric everywhere, so a steep start is neither delayed nor flattened.
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    near = np.minimum(np.minimum(place, len(values) - 1 - place), reach)
    return (total[place + near + 1] - total[place - near]) / (2 * near + 1)


def panels_with(metrics: Mapping[str, Metric]) -> list[Panel]:
    """PANELS with the lines of the metrics, then the panels that only a metric names."""
    panels = {panel.title: panel for panel in PANELS}
    for name, metric in metrics.items():
        if metric.panel:
            panel = panels.get(metric.panel, Panel(metric.panel, percent=metric.share))
            panels[metric.panel] = replace(panel, lines=(*panel.lines, (name, metric.label)))
    return list(panels.values())


def panels_of_evaluators(series: Mapping[str, object]) -> list[Panel]:
    """One panel for each evaluator without a line in PANELS, with its first four metrics."""
    shown = {namespace_of(name) for panel in PANELS for name, _ in panel.lines}
    found: dict[str, list[str]] = {}
    for name in series:
        found.setdefault(namespace_of(name), []).append(name)
    return [
        Panel(
            f"Held-out {namespace}",
            tuple((name, name.rpartition("/")[2]) for name in sorted(names)[:4]),
            measured=False,
        )
        for namespace, names in sorted(found.items())
        if namespace and namespace not in shown
    ]


def draw_curves(
    series: Series,
    theme: Theme,
    metrics: Mapping[str, Metric],
) -> Figure:
    """Draw the panels that the log has values for, three in a row."""
    every = [*panels_with(metrics), *panels_of_evaluators(series)]
    panels = [panel for panel in every if any(name in series for name, _ in panel.lines)]
    if not panels:
        known = ", ".join(sorted({name for panel in every for name, _ in panel.lines}))
        raise ValueError(f"the log holds none of the known metrics ({known})")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(PAGE_WIDTH, 2.45 * rows),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    last = max(float(steps[-1]) for steps, _ in series.values())
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, series, theme)
        axes.set_xlim(0, last or 1)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    for axes in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("step")
    return figure


def draw_recall_bars(result: RetrievalResult, theme: Theme) -> Figure:
    """Draw text-to-video recall beside the colour-set baseline and chance."""
    summary = result.text_to_video
    ks = sorted(summary.recall)
    rows: list[tuple[str, str, Sequence[float]]] = [
        ("this model", theme.series[0], [summary.recall[k] for k in ks])
    ]
    if result.colours:
        rows.append(("colour sets only", theme.series[1], [result.colours.recall[k] for k in ks]))
    rows.append(("chance", theme.muted, [interval.expected for interval in result.chance]))
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 2.6), layout="constrained")
    height = 0.8 / len(rows)
    for place, (label, colour, values) in enumerate(rows):
        y = np.arange(len(ks)) + (place - (len(rows) - 1) / 2) * height
        axes.barh(y, values, height=0.88 * height, color=colour, label=label)
        weight = "normal" if place else "bold"
        for bar, k, value in zip(y, ks, values, strict=True):
            end = value
            if not place and f"R@{k}" in summary.intervals:
                interval = summary.intervals[f"R@{k}"]
                end = max(value, interval[1])
                axes.plot(
                    interval, [bar, bar], color=theme.ink, linewidth=1.3, solid_capstyle="butt"
                )
            axes.text(end + 0.8, bar, f"{value:.1f}", va="center", fontsize=9, fontweight=weight)
    axes.set_yticks(range(len(ks)), [f"R@{k}" for k in ks])
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel="queries answered among the first k, %")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.6)
    return figure


def _draw_panel(
    axes: Axes,
    panel: Panel,
    series: Series,
    theme: Theme,
) -> None:
    axes.set_title(panel.title)
    present = [(name, label) for name, label in panel.lines if name in series]
    single = False
    colours = {name: theme.series[i % len(theme.series)] for i, (name, _) in enumerate(panel.lines)}
    for name, label in present:
        steps, values = series[name]
        values = 100 * values if panel.percent else values
        if len(values) == 1:
            # One point makes no line: draw a mark that the edge does not clip, and its value.
            shown = f"{label}: {values[0]:.4g}"
            point: dict[str, Any] = {"marker": "o", "markersize": 7, "linestyle": "none"}
            axes.plot(steps, values, color=colours[name], label=shown, clip_on=False, **point)
            single = True
            continue
        if len(values) < 20 or not panel.measured:
            dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(values) < 20 else {}
            axes.plot(steps, values, color=colours[name], label=label, **dots)
            continue
        axes.plot(steps, values, color=colours[name], linewidth=0.8, alpha=0.28)
        axes.plot(steps, smooth(values, len(values) // 40), color=colours[name], label=label)
    if panel.logarithmic and all((series[name][1] > 0).all() for name, _ in present):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif all((series[name][1] >= 0).all() for name, _ in present):
        largest = (100 if panel.percent else 1) * max(series[name][1].max() for name, _ in present)
        lowest_top = 5.0 if panel.percent else 0.0
        # Matplotlib leaves no margin above values that hardly change.
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.05 * largest, lowest_top))
    if len(panel.lines) > 1 or single:
        axes.legend(loc="best", handlelength=1.2)
    axes.locator_params(axis="x", nbins=5)


def _sorted(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(values)
    return np.array(steps, dtype=np.float64), np.array([values[step] for step in steps])
