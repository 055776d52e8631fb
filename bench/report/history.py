"""The plot of one machine's results over commits, with lasting changes marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from scipy.stats import ttest_ind

from svilm_fast.bench.run.file import Results, read_results
from svilm_fast.core.units import time_text
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme

LEAST_POINTS = 3  # on either side of a change
LEVEL = 0.001
CHARTS = 12


def read_history(paths: Sequence[Path], current: Results) -> tuple[list[Results], int, int]:
    """Runs of the current machine in time order, the current one last.

    Also returns the number of runs of other machines, and the number of files in folders that are
    not results. Raises ValueError for a named file that is not a result.
    """
    runs: list[Results] = []
    skipped = 0
    for path in paths:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if file.resolve() == current.path.resolve():
                continue
            try:
                runs.append(read_results(file))
            except ValueError:
                if not path.is_dir():
                    raise
                skipped += 1
    alike = [run for run in runs if run.fingerprint == current.fingerprint and run.fingerprint]
    ordered = sorted(alike, key=lambda run: str(run.environment.get("time", "")))
    return [*ordered, current], len(runs) - len(alike), skipped


def change_points(values: Sequence[float]) -> list[int]:
    """Indices where the level changes: binary segmentation by Welch's t-test on logarithms.

    A change needs p <= 0.001, corrected for the positions tried, and three values on either side.
    """
    logs = np.log(np.asarray(values, dtype=float))

    def split(start: int, stop: int) -> list[int]:
        places = range(start + LEAST_POINTS, stop - LEAST_POINTS + 1)
        if not places:
            return []
        tried = [(_p_value(logs[start:place], logs[place:stop]), place) for place in places]
        p, place = min(tried)
        if p * len(tried) > LEVEL:
            return []
        return [*split(start, place), place, *split(place, stop)]

    return split(0, len(logs))


def series(runs: Sequence[Results]) -> dict[str, list[float]]:
    """Medians in milliseconds of the ids that every run measured."""
    found = {}
    for id in runs[-1].records:
        of_id = [run.records[id].time_ms for run in runs if id in run.records]
        known = [value for value in of_id if value is not None]
        if len(known) == len(runs):
            found[id] = known
    return found


def draw_history(runs: Sequence[Results], theme: Theme) -> Figure:
    """Small charts, largest change first; dashed lines mark change points.

    Raises ValueError if no id was measured in every run.
    """
    found = series(runs)
    if not found or len(runs) < 2:
        raise ValueError("a history needs two runs of one machine that share an id")
    moved = sorted(found, key=lambda id: -abs(math.log(found[id][-1] / found[id][0])))[:CHARTS]
    columns = min(3, len(moved))
    count = math.ceil(len(moved) / columns)
    figure, grid = plt.subplots(
        count,
        columns,
        figsize=(PAGE_WIDTH, 2.2 * count),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )
    commits = [str(run.environment.get("commit") or "?")[:7] for run in runs]
    for axes, id in zip(grid.flat, moved, strict=False):
        values = found[id]
        axes.plot(values, color=theme.series[0], marker="o", markersize=3.5)
        for place in change_points(values):
            axes.axvline(place - 0.5, color=theme.wrong, linewidth=1.1, linestyle="--")
        suite, name, case, _, direction, provider = id.split("/")
        axes.set_title(f"{suite} {name}\n{case}, {direction}, {provider}", fontsize=8.5)
        axes.set_ylim(0, max(values) * 1.15)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))
        shown = sorted({0, len(commits) // 2, len(commits) - 1})
        axes.set_xticks(shown, [commits[i] for i in shown])
    for axes in list(grid.flat)[len(moved) :]:
        axes.axis("off")
    return figure


def _p_value(left: np.ndarray, right: np.ndarray) -> float:
    if max(np.ptp(left), np.ptp(right)) < 1e-12:
        return 0.0 if left[0] != right[0] else 1.0
    return float(ttest_ind(left, right, equal_var=False).pvalue)
