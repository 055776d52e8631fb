"""The picture of memory scaling: global batch against peak memory, a panel for each subject."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from svilm_fast.bench.memory_scaling.cases import DIM, MICRO_BATCH, NUM_GROUPS, NUM_NOUNS
from svilm_fast.bench.memory_scaling.measure import Peak, memory_source, scaling_exponents
from svilm_fast.core.units import bytes_text
from svilm_fast.report.canvas import to_png
from svilm_fast.report.theme import LIGHT, drawing

PANELS = {
    "infonce": ("Contrast", f"D = {DIM}"),
    "grounding": ("Grounding", f"{NUM_NOUNS} nouns, {NUM_GROUPS} groups, D = {DIM}"),
    "step": ("Whole step", f"demo, micro-batch {MICRO_BATCH}"),
}
# Our method first, in the first colour of the theme.
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
        figure, axes = plt.subplots(1, len(PANELS), figsize=(11.0, 4.1))
        exponents = scaling_exponents(found)
        for panel, subject in zip(axes, PANELS):
            own = [peak for peak in found if peak.subject == subject]
            _panel(panel, subject, own, exponents)
        axes[0].set_ylabel("peak memory")
        title = "Memory of loss and gradients as the global batch grows"
        figure.text(0.012, 0.955, title, fontweight="bold", fontsize=12, va="center")
        note = f"{memory_source(device)}, less that before. Exponents: last three sizes."
        figure.text(0.012, 0.893, note, color=LIGHT.muted, va="center", fontsize=8.5)
        figure.tight_layout(rect=(0, 0, 1, 0.875), w_pad=2.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure))


def _panel(panel: Axes, subject: str, found: list[Peak], exponents: dict[str, float]) -> None:
    name, detail = PANELS[subject]
    panel.set_title(name, pad=8)
    panel.set_title(
        detail, loc="right", pad=8, fontsize=8.5, fontweight="normal", color=LIGHT.muted
    )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    for method in dict.fromkeys(peak.method for peak in found):
        points = [(p.batch, p.bytes) for p in found if p.method == method and p.bytes is not None]
        power = exponents.get(f"{subject}/{method}")
        label = method if power is None else f"{method}: batch$^{{{power:.1f}}}$"
        colour = LIGHT.series[COLOURS[method]]
        if points:
            panel.plot(*zip(*points), marker="o", markersize=4.5, color=colour, label=label)
        else:
            panel.plot([], [], linestyle="none", label=f"{method}: not measured yet (GPU)")
    panel.legend(loc="upper left", handlelength=1.4)
    measured = [(peak.batch, peak.bytes) for peak in found if peak.bytes is not None]
    batches = sorted({batch for batch, _ in measured})
    panel.xaxis.set_major_locator(FixedLocator([float(batch) for batch in batches]))
    panel.set_xticklabels([f"{batch:,}" for batch in batches])
    panel.tick_params(axis="x", labelsize=8.5)
    panel.set_xlabel("global batch (pairs)")
    _byte_ticks(panel, [size for _, size in measured])


def _byte_ticks(panel: Axes, sizes: list[int]) -> None:
    low = max(min(sizes), 1).bit_length() - 1
    high = max(sizes).bit_length()
    low -= low % 2
    ticks = range(low, high + 3, 2)
    # Room for the legend above the highest line.
    panel.set_ylim(0.8 * 2.0**low, 2.0 ** (high + 2.2))
    panel.yaxis.set_major_locator(FixedLocator([2.0**power for power in ticks]))
    panel.set_yticklabels([bytes_text(2**power) for power in ticks])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
