"""The picture of a data set's index: seconds and bytes against samples, and the earlier reader."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from svilm_fast.bench.data_index.measure import EARLIER, EARLIER_WORKER_BYTES, RANKS, Opened
from svilm_fast.bench.data_index.positions import BATCH, ORDERS, Positions
from svilm_fast.report.canvas import to_png
from svilm_fast.report.theme import LIGHT, drawing

_LEAST = 0.1  # MB that a line shows: differences of processes below it are noise


def draw(found: list[Opened], positions: list[Positions], path: Path) -> None:
    """Write the PNG."""
    now, before = LIGHT.series[0], LIGHT.series[1]
    samples = [each.samples for each in found]
    earlier = [each["samples"] for each in EARLIER]
    with drawing(LIGHT):
        figure, (seconds, memory, finding) = plt.subplots(1, 3, figsize=(13.2, 4.6))
        style = {"marker": "o", "markersize": 4.5}
        seconds.plot(samples, [each.open_s for each in found], color=now, label="index", **style)
        seconds.plot(
            earlier, [each["open_s"] for each in EARLIER], color=before, label="objects", **style
        )
        seconds.set_ylabel("seconds to open, each rank")
        for name, line in (("rank", "-"), ("worker", "--")):
            private = [max(getattr(each, f"{name}_private") / 1e6, _LEAST) for each in found]
            label = f"index, {name}"
            memory.plot(samples, private, color=now, linestyle=line, label=label, **style)
        memory.plot(
            earlier,
            [each["rank_bytes"] / 1e6 for each in EARLIER],
            color=before,
            label="objects, rank",
            **style,
        )
        memory.plot(
            earlier,
            [each * EARLIER_WORKER_BYTES / 1e6 for each in earlier],
            color=before,
            linestyle="--",
            label="objects, worker",
            **style,
        )
        memory.set_ylabel("private memory, MB")
        for colour, order in zip((now, LIGHT.series[2]), ORDERS):
            mine = [each for each in positions if each.order == order]
            for name, line, count in (("one_s", "-", "1"), ("batch_s", "--", str(BATCH))):
                finding.plot(
                    [each.samples for each in mine],
                    [1e6 * getattr(each, name) for each in mine],
                    color=colour,
                    linestyle=line,
                    label=f"{order}, {count}",
                    **style,
                )
        finding.set_ylabel("microseconds to find samples")
        finding.set_ylim(1, 10_000)
        for panel in (seconds, memory, finding):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel("samples")
            # Below the axes: inside, lines of another measurement may cross it.
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, handlelength=2.2)
        title = (
            "A data set's mapped index, the table of objects before it, and the order of an epoch"
        )
        figure.text(0.012, 0.955, title, fontweight="bold", fontsize=12, va="center")
        note = (
            f"Index: {RANKS} ranks with a worker each have it open and have drawn batches; memory "
            f"beyond a process with 1,000 samples. Right: 1 or {BATCH} positions of an epoch."
        )
        figure.text(0.012, 0.893, note, color=LIGHT.muted, va="center", fontsize=8.5)
        figure.tight_layout(rect=(0, 0, 1, 0.875), w_pad=2.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure))
