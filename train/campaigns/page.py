"""The page of results in Markdown, and a picture of each section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svilm_fast.core.files import write_atomically
from svilm_fast.train.campaigns.results import SeedSpread, rendered, seeds_text

# The first line of a page that this module wrote.
HEADING = "# Results of training runs"
INTRODUCTION = (
    "`make results` writes this page from `docs/results/*.json`. A cell shows the mean over seeds "
    "with the smallest and the largest value. After a semicolon stands the difference to the "
    "section's reference row, seed by seed, again as mean and range."
)


def picture_name(table: str, section: str) -> str:
    """Name the picture of a section."""
    return f"results_{table}_{section}.png"


def page_text(results: Sequence[Mapping[str, Any]], figures: str) -> str:
    """Return the page; figures: path of the pictures' folder, relative to the page."""
    lines = [HEADING, "", INTRODUCTION]
    for result in results:
        lines += ["", f"## {result['title']}", ""]
        if result["text"]:
            lines += [result["text"], ""]
        lines.append(
            f"{seeds_text(result)}; {_machines(result)}. "
            f"`svilm ablate {result['table']}` runs this table again."
        )
        for key, section in result["sections"].items():
            lines += ["", f"### {section['title']}", ""]
            if section["text"]:
                lines += [section["text"], ""]
            lines += _table(section, result["steps"])
            if section["compare"] is not None:
                lines += ["", f"Differences are to “{section['compare']}”."]
            lines += ["", f"![{section['title']}]({figures}/{picture_name(result['table'], key)})"]
    return "\n".join(lines) + "\n"


def _machines(result: Mapping[str, Any]) -> str:
    found = []
    for each in result["environments"]:
        ranks = each["world_size"]
        torch = each["packages"]["torch"]
        what = f"torch {torch}, {each['device']}, {ranks} rank{'s' * (ranks > 1)}"
        found += [what] * (what not in found)
    return "; ".join(found)


def _table(section: Mapping[str, Any], steps: Mapping[str, int]) -> Iterator[str]:
    yield f"| | {' | '.join(section['columns'].values())} | steps |"
    yield "|---" * (len(section["columns"]) + 2) + "|"
    for label, row in section["rows"].items():
        cells = [rendered(section, label, metric) for metric in section["columns"]]
        yield f"| {label} | {' | '.join(cells)} | {steps[row['run']]:,} |"


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw each section: a panel for each column, a point for each seed, a bar at the mean."""
    import matplotlib.pyplot as plt

    from svilm_fast.report.canvas import to_png
    from svilm_fast.report.theme import LIGHT, drawing

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for key, section in result["sections"].items():
        labels = list(section["rows"])
        count = len(section["columns"])
        with drawing(LIGHT):
            figure, panels = plt.subplots(
                1,
                count,
                figsize=(2.0 + 2.6 * count, 0.9 + 0.45 * len(labels)),
                sharey=True,
                squeeze=False,
                layout="constrained",
            )
            for panel, (metric, heading) in zip(panels[0], section["columns"].items(), strict=True):
                for place, label in enumerate(labels):
                    values = section["rows"][label]["values"][metric]
                    colour = LIGHT.series[0 if label != section["compare"] else 1]
                    spread = SeedSpread.of(values)
                    panel.barh(place, spread.mean, height=0.5, color=colour, alpha=0.35)
                    panel.plot(values, [place] * len(values), "o", color=colour, markersize=4.5)
                panel.set_title(heading)
                panel.set_yticks(range(len(labels)), labels)
                panel.grid(axis="y", visible=False)
            panels[0][0].invert_yaxis()
            path = folder / picture_name(result["table"], key)
            write_atomically(path, to_png(figure))
            plt.close(figure)
        written.append(path)
    return written
