"""Plots measured collectives with their fits, and predicted over measured step times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"all_gather": "#2a6f97", "reduce_scatter": "#c8553d", "all_reduce": "#5b8e3e"}
MARKERS = "osD^v<>"


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG: seconds over bytes (left), predicted over measured step time (right)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for one, marker in zip(measured, MARKERS, strict=False):
        for kind, colour in COLOURS.items():
            rows = [row for row in one["timed"] if row["kind"] == kind]
            sizes = np.array([row["bytes"] for row in rows], dtype=float)
            left.loglog(sizes, [row["seconds"] * 1e3 for row in rows], marker, color=colour, ms=5)
            fit = one["fits"][kind]
            left.loglog(sizes, (fit["alpha"] + fit["beta"] * sizes) * 1e3, color=colour, lw=0.8)
        steps = one["steps"]
        right.loglog(
            [row["seconds_measured"] * 1e3 for row in steps],
            [row["seconds_predicted"] * 1e3 for row in steps],
            marker,
            color="#444444",
            label=f"{one['world_size']} ranks",
        )
    for kind, colour in COLOURS.items():
        left.plot([], [], color=colour, label=kind)
    left.set(xlabel="bytes of the whole tensor", ylabel="milliseconds")
    left.set_title("Collectives: measured (marks) and fitted (lines)", fontsize=10)
    ends = np.array(right.get_xlim())
    right.plot(ends, ends, color="#999999", lw=0.8, label="equal")
    right.fill_between(
        ends, ends / 2, ends * 2, color="#999999", alpha=0.15, lw=0, label="factor 2"
    )
    right.set(xlabel="measured, ms", ylabel="predicted, ms", xlim=ends)
    right.set_title("Collectives of both losses, forward and backward", fontsize=10)
    for axes in (left, right):
        axes.grid(visible=True, which="major", alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
