"""The picture of network expansion: loss over the FLOPs of the whole path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from svilm_fast.report.canvas import to_png
from svilm_fast.report.theme import LIGHT, drawing

TITLE = "svilm bench growth"


def draw(found: Mapping[str, Sequence[Sequence[Any]]], path: Path) -> None:
    """Write the PNG. found: by label, for each repetition the runs of the path (`PathRun`).

    The runs before the last one are dashed: their model is smaller.
    """
    with drawing(LIGHT):
        figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
        for number, (label, repetitions) in enumerate(found.items()):
            colour = LIGHT.series[number]
            for repetition, runs in enumerate(repetitions):
                for run in runs[:-1]:
                    axes.plot(run.flops, run.loss, color=colour, linestyle=":", linewidth=1.0)
                last = runs[-1]
                shown = label if repetition == 0 else None
                axes.plot(last.flops, last.loss, color=colour, linewidth=1.4, label=shown)
        axes.set_title("Loss of masked patches; dotted: the small model before it is grown")
        axes.set_xlabel("training FLOPs of the whole path, 10$^{12}$")
        axes.set_ylabel("loss")
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, title=TITLE))
