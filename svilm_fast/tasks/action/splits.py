"""The mean of recognition over the splits of a data set, as UCF101 and HMDB51 report it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.tasks.action.result import RecognitionResult

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_of_top1_and_top5": "mean",
    "mean_per_class": "per class",
}


@dataclass(frozen=True)
class SplitMean:
    """Results of one method on several splits, by name, at least two."""

    results: Mapping[str, RecognitionResult]

    @property
    def prefix(self) -> str:
        """Of the metrics, the same for all splits."""
        return next(iter(self.results.values())).prefix

    def percentages(self) -> dict[str, float]:
        """The unweighted means over the splits."""
        rows = [result.scores.percentages() for result in self.results.values()]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def lost(self) -> int:
        """Videos that were not decoded, over all splits; they count as wrong."""
        return sum(len(result.missing) for result in self.results.values())

    def lines(self) -> list[str]:
        """A table with a row for every split and one for the mean."""
        width = max(len(name) for name in (*self.results, "mean")) + 2
        head = "".join(f"{title:>11}" for title in TITLES.values())
        lines = [f"{'split':{width}}{head}{'videos':>9}{'not decoded':>13}"]
        for name, result in self.results.items():
            lines.append(
                f"{name:{width}}{_cells(result.scores.percentages())}"
                f"{result.scores.videos:>9}{len(result.missing):>13}"
            )
        videos = sum(result.scores.videos for result in self.results.values())
        return [*lines, f"{'mean':{width}}{_cells(self.percentages())}{videos:>9}{self.lost():>13}"]

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        means = {f"{self.prefix}/{key}": value for key, value in self.percentages().items()}
        content: dict[str, Any] = means | {
            f"{self.prefix}/videos_not_decoded": float(self.lost()),
            "protocol": {"mean": f"unweighted, over {len(self.results)} splits"},
            "splits": {
                name: {**result.metrics(), "protocol": result.protocol}
                for name, result in self.results.items()
            },
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (folder / f"{name}.txt").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")


def _cells(percentages: Mapping[str, float]) -> str:
    return "".join(f"{percentages[name]:11.2f}" for name in TITLES)
