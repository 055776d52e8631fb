"""The page of results in Markdown, and a picture of each section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from svilm_fast.core.files import write_atomically
from svilm_fast.train.campaigns.bootstrap import LEAST_SEEDS
from svilm_fast.train.campaigns.comparisons import verdict
from svilm_fast.train.campaigns.results import (
    MARK,
    SeedSpread,
    digits,
    interval,
    rendered,
    seeds_text,
)

if TYPE_CHECKING:
    from svilm_fast.report.theme import Theme

SEED_BAND = 0.4  # height of the seeds of a row, rows
LABEL_WIDTH = 30  # characters of a line of a row's label
PANELS_ACROSS = 3

# The first line of a page that this module wrote.
HEADING = "# Results of training runs"
INTRODUCTION = (
    "`make results` writes this page from `docs/results/*.json`. A cell shows the mean over seeds "
    "with the smallest and the largest value where they differ. After a semicolon stands the "
    "difference to the section's reference row, seed by seed: its mean and its range; with at "
    f"least {LEAST_SEEDS} seeds, its mean and in square brackets its 95 % interval by a bootstrap "
    f"over seeds and queries. {MARK} marks an interval that excludes zero; intervals are not "
    "corrected for the number of comparisons."
)

CLAIMS = (
    "“By” is the margin of a claim: its mean over seeds, with a 95 % interval from "
    f"{LEAST_SEEDS} seeds on, unless all margins are equal. A claim held, or did not, where the "
    "interval excludes zero; otherwise it is open. Without an interval the last column says in how "
    "many seeds the margin is positive, which is a hint: without any effect, all of three seeds "
    "favour a claim in one of eight cases. The intervals are not corrected for the number of "
    "claims."
)


def picture_name(table: str, section: str) -> str:
    """Name the picture of a section."""
    return f"results_{table}_{section}.png"


def page_text(results: Sequence[Mapping[str, Any]], figures: str) -> str:
    """Return the page; figures: path of the pictures' folder, relative to the page."""
    lines = [HEADING, "", INTRODUCTION, *_claims(results), *_follows(results)]
    for result in results:
        lines += ["", f"## {result['title']}", ""]
        if result["text"]:
            lines += [result["text"], ""]
        lines.append(
            f"{seeds_text(result)}; {_machines(result)}{_commits(result)}. "
            f"`{result.get('command', 'svilm ablate ' + result['table'])}` runs this table again."
        )
        for key, section in result["sections"].items():
            lines += ["", f"### {section['title']}", ""]
            if section["text"]:
                lines += [section["text"], ""]
            lines += _table(section, result["steps"])
            if section["compare"] is not None:
                lines += ["", f"Differences are to “{section['compare']}”.{_drawn(section)}"]
            lines += ["", f"![{section['title']}]({figures}/{picture_name(result['table'], key)})"]
    return "\n".join(lines) + "\n"


def _claims(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of every claim of the tables whether it held."""
    rows = [
        f"| {claim['text']} | {result['title']} | {section['columns'][claim['metric']]} "
        f"| {_claim_cells(section, claim)} |"
        for result in results
        for section in result["sections"].values()
        for claim in section.get("claims", [])
    ]
    if rows:
        yield from ("", "## What was expected, and what held", "", CLAIMS, "")
        yield from (
            "| Expected | Table | Metric | Measured | By | |",
            "|---|---|---|---|---|---|",
            *rows,
        )


def _follows(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """List what follows from the sections that say so."""
    found = [
        f"- {result['title']}: {section['follows']}"
        for result in results
        for section in result["sections"].values()
        if section.get("follows")
    ]
    if found:
        yield from ("", "## What follows", "", *found)


def _claim_cells(section: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    found, form = verdict(section, claim), f".{digits(section, claim['metric'])}f"
    own, other = (
        SeedSpread.of(section["rows"][claim[each]]["values"][claim["metric"]]).mean
        for each in ("row", "than")
    )
    bound = f"{claim['times']:g} × {other:{form}}" if claim["times"] != 1 else f"{other:{form}}"
    if claim["plus"]:
        bound += f" {'+' if claim['plus'] > 0 else '−'} {abs(claim['plus']):g}"
    margin = f"{found.margin:+{form}}"
    if found.interval is not None:
        margin += f" [{found.interval.low:+{form}} to {found.interval.high:+{form}}]"
    return f"{own:{form}} against {bound} | {margin} | {found.text}"


def _drawn(section: Mapping[str, Any]) -> str:
    """Name the columns whose intervals are of seeds alone, where there are intervals."""
    label = next((each for each in section["rows"] if each != section["compare"]), None)
    if label is None:
        return ""
    ends = {metric: interval(section, label, metric) for metric in section["columns"]}
    alone = [
        section["columns"][metric] for metric, each in ends.items() if each and not each.queries
    ]
    return f" Intervals are over seeds alone for: {', '.join(alone)}." if alone else ""


def _machines(result: Mapping[str, Any]) -> str:
    found = []
    for each in result["environments"]:
        ranks = each["world_size"]
        torch = each["packages"]["torch"]
        what = f"torch {torch}, {each['device']}, {ranks} rank{'s' * (ranks > 1)}"
        found += [what] * (what not in found)
    return "; ".join(found)


def _commits(result: Mapping[str, Any]) -> str:
    """Name the code of the runs; a table of several commits says so."""
    found = result.get("commits", [])
    if not found:
        return ""
    return f"; code of commit{'s' * (len(found) > 1)} {', '.join(found)}"


def _table(section: Mapping[str, Any], steps: Mapping[str, int]) -> Iterator[str]:
    yield f"| | {' | '.join(section['columns'].values())} | Steps of the last training |"
    yield "|---" * (len(section["columns"]) + 2) + "|"
    for label, row in section["rows"].items():
        cells = [rendered(section, label, metric) for metric in section["columns"]]
        yield f"| {label} | {' | '.join(cells)} | {steps[row['run']]:,} |"


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw each section: a panel for each column with seeds, means and intervals of differences."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from svilm_fast.report.canvas import to_png
    from svilm_fast.report.theme import LIGHT, drawing

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for key, section in result["sections"].items():
        labels = [fill(label, LABEL_WIDTH) for label in section["rows"]]
        columns = _drawn_columns(section)
        across = 2 if len(columns) == 4 else min(PANELS_ACROSS, len(columns))
        down = -(-len(columns) // across)
        key_columns = 1 if across == 1 else 3  # a narrow picture has no room for three
        with drawing(LIGHT):
            figure, panels = plt.subplots(
                down,
                across,
                figsize=(
                    2.4 + 2.9 * across,
                    0.2 + 0.9 / key_columns + down * (0.7 + 0.36 * len(labels)),
                ),
                sharey=True,
                squeeze=False,
                layout=ConstrainedLayoutEngine(wspace=0.06),
            )
            for panel, (metric, heading) in zip(panels.flat, columns.items(), strict=False):
                _draw_panel(panel, section, metric, LIGHT)
                panel.set_title(heading, fontsize=9.5, loc="left")
                panel.set_yticks(range(len(labels)), labels)
            for panel in panels.flat[len(columns) :]:
                panel.set_visible(False)
            panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
            for panel in panels[:, 1:].flat:
                panel.tick_params(left=False)  # it would point at the values of the panel before
            _draw_key(figure, section, LIGHT, key_columns)
            path = folder / picture_name(result["table"], key)
            write_atomically(path, to_png(figure))
            plt.close(figure)
        written.append(path)
    return written


def _drawn_columns(section: Mapping[str, Any]) -> Mapping[str, str]:
    """Leave out columns with one value, such as a level of chance; the table has them."""
    rows = section["rows"].values()
    varied = {
        metric: heading
        for metric, heading in section["columns"].items()
        if len({value for row in rows for value in row["values"][metric]}) > 1
    }
    return varied or section["columns"]


def _draw_panel(panel: Any, section: Mapping[str, Any], metric: str, theme: Theme) -> None:
    rows, compare = section["rows"], section["compare"]
    form = f".{digits(section, metric)}f"
    reference = None
    if compare is not None:
        reference = SeedSpread.of(rows[compare]["values"][metric]).mean
        panel.axvline(reference, color=theme.muted, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    for place, (label, row) in enumerate(rows.items()):
        values = row["values"][metric]
        colour = theme.series[0 if label != compare else 1]
        mean = SeedSpread.of(values).mean
        ends = interval(section, label, metric)
        if ends is not None and reference is not None:
            panel.barh(
                place,
                ends.high - ends.low,
                left=reference + ends.low,
                height=0.5,
                color=colour,
                alpha=0.42 if ends.excludes_zero else 0.16,
                zorder=2,
            )
        # Seeds lie beside each other, so that equal values stay visible.
        spread = [
            place + SEED_BAND * (each - (len(values) - 1) / 2) / len(values)
            for each in range(len(values))
        ]
        panel.plot(values, spread, "o", color=colour, markersize=3, zorder=3, clip_on=False)
        panel.plot(mean, place, "|", color=theme.ink, markersize=13, markeredgewidth=2, zorder=4)
        panel.annotate(
            f"{mean:{form}}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=theme.ink,
        )
    panel.grid(axis="y", visible=False)
    panel.use_sticky_edges = False  # of the bars, which would end at the edge
    panel.margins(x=0.06)


def _draw_key(figure: Any, section: Mapping[str, Any], theme: Theme, columns: int) -> None:
    """Explain the marks of a picture below it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    compare, colour = section["compare"], theme.series[0]
    marks: list[Any] = [
        Line2D([], [], marker="o", markersize=3, linestyle="", color=colour, label="a seed"),
        Line2D(
            [],
            [],
            marker="|",
            markersize=10,
            markeredgewidth=2,
            linestyle="",
            color=theme.ink,
            label="mean, with its value at the right",
        ),
    ]
    if compare is not None:
        dashes = (0, (4, 3))
        marks.append(
            Line2D([], [], color=theme.muted, linestyle=dashes, label=f"mean of {compare}")
        )
        every = (interval(section, *each) for each in product(section["rows"], section["columns"]))
        if any(every):
            text = "95 % interval of the difference to it, drawn from its mean"
            marks.append(Patch(color=colour, alpha=0.16, label=text))
            marks.append(Patch(color=colour, alpha=0.42, label="… that excludes zero"))
    figure.legend(handles=marks, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
