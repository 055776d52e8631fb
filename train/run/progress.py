"""Console output of a run: a live progress bar on a terminal, text lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from rich.columns import Columns
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from svilm_fast.core.console import Console
from svilm_fast.core.terminal import print
from svilm_fast.objectives.base import Metric
from svilm_fast.train.run.straggler import stands_out

# Shown after the loss and the metrics of the objectives.
SHORT_NAMES = {
    "empty_group_rate": "empty groups",
    "gradient_norm": "|grad|",
    "learning_rate": "lr",
    "clips_per_second": "clips/s",
    "data_wait_share": "data wait",
    "model_tflops_per_second": "TFLOP/s",
    "utilisation": "util",
    "peak_memory_bytes": "memory",
}
LINE_WIDTH = 120  # columns of a line without a terminal
INDENT = "    "
Metrics = Mapping[str, Metric]
NONE: Metrics = MappingProxyType({})
# Longer figures get lines of their own: they would widen the columns of the others.
LONGEST_FIGURE = 20
SHARES = {"empty_group_rate", "data_wait_share", "utilisation"}


def short_names(metrics: Metrics) -> dict[str, str]:
    """Return the shown names of a record's values, in order; metrics: those of the objectives."""
    shown = {name: metric.short for name, metric in metrics.items() if metric.short}
    return {"loss": "loss"} | shown | SHORT_NAMES


def readable(name: str, value: float, share: bool = False) -> str:
    """Return a number with its unit, rounded for the console; share: in percent."""
    if share or name in SHARES:
        return f"{100 * value:.0f}%"
    if name == "peak_memory_bytes":
        return f"{value / 2**30:.2f} GiB"
    if name == "learning_rate":
        return f"{value:.2e}"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def summary(values: Mapping[str, float], on_gpu: bool, metrics: Metrics = NONE) -> str:
    """Return one line with the values that have a short name, and a rank that is clearly slower."""
    shares = {name for name, metric in metrics.items() if metric.share}
    parts = [
        f"{short} {readable(name, values[name], name in shares)}"
        for name, short in short_names(metrics).items()
        if name in values
    ]
    if "utilisation" not in values and "model_tflops_per_second" in values:
        parts.append("util n/a" if not on_gpu else "util ? (unknown GPU)")
    if stands_out(values):
        rank, ratio = values["straggler_rank"], values["straggler_ratio"]
        parts.append(f"slowest rank {rank:.0f} ({ratio:.2f}x the mean)")
    return " | ".join(parts)


def figure_lines(head: str, figures: str) -> str:
    """Return figures joined by " | " as lines of at most LINE_WIDTH columns, the first with `head`.

    Lines break between figures, and those after the first are indented. A figure that is longer
    than a line loses the end of its name.
    """
    rows = [head]
    for part in figures.split(" | ") if figures else []:
        if len(rows[-1]) + len(part) + 3 > LINE_WIDTH:
            rows.append(INDENT + _shortened(part, LINE_WIDTH - len(INDENT)))
        else:
            rows[-1] += f" | {part}"
    return "\n".join(rows)


def _shortened(figure: str, width: int) -> str:
    if len(figure) <= width:
        return figure
    name, _, value = figure.rpartition(" ")
    return f"{name[: max(0, width - len(value) - 2)]}… {value}"


class FiguresBelow(Progress):
    """A progress bar with the latest figures below it."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, the short figures in columns, then the long ones."""
        yield from super().get_renderables()
        parts = self.figures.split(" | ") if self.figures else []
        short = [Text(part) for part in parts if len(part) <= LONGEST_FIGURE]
        yield Columns(short, padding=(0, 2))
        yield from (Text(part) for part in parts if len(part) > LONGEST_FIGURE)


class Display:
    """Shows the progress on rank 0; the other ranks print nothing."""

    def __init__(
        self,
        mode: Literal["auto", "on", "off"],
        *,
        first: bool,
        total_steps: int,
        start_step: int,
        on_gpu: bool,
        metrics: Metrics = NONE,
        console: Console | None = None,
    ) -> None:
        """metrics: of the objectives. console: for the bar; default: stderr."""
        self.metrics = metrics
        self.first = first
        self.total_steps = total_steps
        self.on_gpu = on_gpu
        self.bar: FiguresBelow | None = None
        self.task = TaskID(0)
        live = mode == "on" or (mode == "auto" and sys.stderr.isatty())
        if first and live:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = FiguresBelow(*columns, console=console or Console(stderr=True))
            self.task = self.bar.add_task("", total=total_steps, completed=start_step)
            self.bar.start()

    def step(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        line = summary(values, self.on_gpu, self.metrics)
        if self.bar is not None:
            self.bar.figures = line
            self.bar.refresh()
        elif self.first:
            print(figure_lines(f"step {step}/{self.total_steps}", line), flush=True)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.console.print(message, markup=False, highlight=False)
        elif self.first:
            print(message, flush=True)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        if self.bar is not None:
            self.bar.stop()
