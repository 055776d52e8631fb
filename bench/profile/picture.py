"""The plot of memory over the recorded steps, with the trace ranges below it."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from svilm_fast.bench.profile.trace import STEP, Trace, nested
from svilm_fast.core.trace_ranges import PREFIX
from svilm_fast.core.units import bytes_text
from svilm_fast.report.canvas import PAGE_WIDTH, to_png
from svilm_fast.report.theme import LIGHT, Theme, drawing

LEAST_LABEL = 0.055  # of the width


def write_memory(trace: Trace, path: Path) -> bool:
    """Write the PNG; returns False if the trace has no memory events."""
    if not trace.memory:
        return False
    with drawing(LIGHT):
        path.write_bytes(to_png(draw_memory(trace, LIGHT)))
    return True


def draw_memory(trace: Trace, theme: Theme) -> Figure:
    """Allocated bytes per device over milliseconds, and one line of ranges per level of nesting."""
    figure, (axes, below) = plt.subplots(
        2,
        1,
        figsize=(PAGE_WIDTH, 4.6),
        sharex=True,
        height_ratios=(3, 1),
        layout="constrained",
    )
    for place, memory in enumerate(trace.memory):
        at = [time / 1e3 for time in memory.at]
        # On a CPU the profiler starts at zero, so freeing earlier memory gives a negative level.
        lowest = min(0.0, *memory.allocated)
        level = [size - lowest for size in memory.allocated]
        axes.step(at, level, where="post", color=theme.series[place], label=memory.device)
        axes.fill_between(at, level, step="post", color=theme.series[place], alpha=0.15)
    axes.set_title("Allocated memory, above its lowest level")
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(top, 8) / 8))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    if len(trace.memory) > 1:
        axes.legend(loc="upper right")
    first, last = trace.windows[0][0], trace.windows[-1][1]
    width = (last - first) / 1e3
    marks = [
        e
        for e in trace.events
        if e.category == "user_annotation" and e.name.startswith(PREFIX) and e.name != STEP
    ]
    names = list(dict.fromkeys(e.name for e in marks))
    depth = 1
    for event, around in nested(marks):
        row = len(around)
        depth = max(depth, row + 1)
        start, length = (event.start - first) / 1e3, event.length / 1e3
        colour = theme.series[names.index(event.name) % len(theme.series)]
        below.barh(row, length, left=start, height=0.86, color=colour, edgecolor=theme.surface)
        if length > LEAST_LABEL * width:
            below.text(
                start + length / 2,
                row,
                event.name.removeprefix(PREFIX),
                ha="center",
                va="center",
                fontsize=7.5,
                color=theme.surface,
                clip_on=True,
            )
    below.set(xlim=(0, width), ylim=(depth - 0.5, -0.5), xlabel="milliseconds", yticks=[])
    below.grid(visible=False)
    return figure
