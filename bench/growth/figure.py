"""The picture of the growth: global batch against peak memory, one panel for each subject."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from svilm_fast.bench.growth.cases import DIM, MICRO_BATCH, NUM_GROUPS, NUM_NOUNS
from svilm_fast.bench.growth.measure import Peak, growth, memory_source
from svilm_fast.report.canvas import to_png
from svilm_fast.report.theme import LIGHT, drawing

PANELS = {
    "infonce": f"Contrast, D = {DIM}",
    "grounding": f"Grounding, {NUM_NOUNS} nouns x {NUM_GROUPS} groups, D = {DIM}",
    "step": f"Whole step of the demo, micro-batch {MICRO_BATCH}",
}
# Ours first: the first colour of the theme is the project's.
COLOURS = {
    "chunked": 0,
    "fused": 2,
    "plain": 1,
    "gradient cache": 0,
    "single pass": 1,
}


def draw(found: list[Peak], device: torch.device, path: Path) -> None:
    """Write the PNG."""
    with drawing(LIGHT):
        figure, axes = plt.subplots(1, len(PANELS), figsize=(11.0, 3.9))
        exponents = growth(found)
        for panel, subject in zip(axes, PANELS):
            own = [peak for peak in found if peak.subject == subject]
            _panel(panel, subject, own, exponents)
        axes[0].set_ylabel("peak memory")
        figure.suptitle(
            "Memory of loss and gradients as the global batch grows",
            x=0.012,
            ha="left",
            fontweight="bold",
            fontsize=12,
        )
        note = f"{memory_source(device)}; over that before the inputs. Exponents: last three sizes."
        figure.text(0.012, 0.885, note, color=LIGHT.muted, ha="left", va="center", fontsize=8.5)
        figure.tight_layout(rect=(0, 0, 1, 0.88), w_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure))


def _panel(panel: Axes, subject: str, found: list[Peak], exponents: dict[str, float]) -> None:
    panel.set_title(PANELS[subject], pad=8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    measured = [(peak, peak.bytes) for peak in found if peak.bytes is not None]
    for method in dict.fromkeys(peak.method for peak, _ in measured):
        points = [(peak.batch, size) for peak, size in measured if peak.method == method]
        colour = LIGHT.series[COLOURS[method]]
        power = exponents.get(f"{subject}/{method}")
        label = method if power is None else f"{method}: batch$^{{{power:.1f}}}$"
        panel.plot(*zip(*points), marker="o", markersize=4.5, color=colour, label=label)
    panel.legend(loc="upper left", handlelength=1.4)
    batches = sorted({peak.batch for peak, _ in measured})
    panel.xaxis.set_major_locator(FixedLocator([float(batch) for batch in batches]))
    panel.set_xticklabels([f"{batch:,}" for batch in batches])
    panel.set_xlabel("global batch (pairs)")
    _byte_ticks(panel, [size for _, size in measured])


def _byte_ticks(panel: Axes, sizes: list[int]) -> None:
    low = max(min(sizes), 1).bit_length() - 1
    high = max(sizes).bit_length()
    # Room for the legend above the highest line.
    panel.set_ylim(0.8 * 2.0**low, 2.0 ** (high + 1.2))
    panel.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 2)]))
    panel.set_yticklabels([readable(2**power) for power in range(low, high + 2)])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def readable(size: float) -> str:
    """Bytes in the largest unit that gives at least 1, to three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.3g} {unit}"
