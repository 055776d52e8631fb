"""The picture of opening a data set: seconds and bytes against samples, and the earlier reader."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from svilm_fast.bench.data_index.measure import EARLIER, EARLIER_WORKER_BYTES, RANKS, Opened
from svilm_fast.report.canvas import to_png
from svilm_fast.report.theme import LIGHT, drawing

_LEAST = 0.1  # MB that a line shows: differences of processes below it are noise


def draw(found: list[Opened], path: Path) -> None:
    """Write the PNG."""
    now, before = LIGHT.series[0], LIGHT.series[1]
    samples = [each.samples for each in found]
    earlier = [each["samples"] for each in EARLIER]
    with drawing(LIGHT):
        figure, (seconds, memory) = plt.subplots(1, 2, figsize=(9.0, 4.6))
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
        for panel in (seconds, memory):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel("samples")
            # Below the axes: inside, lines of another measurement may cross it.
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, handlelength=2.2)
        title = "Opening a data set: a mapped index and the table of objects before it"
        figure.text(0.012, 0.955, title, fontweight="bold", fontsize=12, va="center")
        note = (
            f"Index: {RANKS} ranks with a worker each have it open and have drawn batches; memory "
            "beyond a process with 1,000 samples."
        )
        figure.text(0.012, 0.893, note, color=LIGHT.muted, va="center", fontsize=8.5)
        figure.tight_layout(rect=(0, 0, 1, 0.875), w_pad=2.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure))
