"""The study's figures: rates with exact intervals, a table for the docs, a picture."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from svilm_fast.bench.ab.statistics import RESAMPLES, student_tail
from svilm_fast.bench.sections import put_section
from svilm_fast.core.terminal import print

NOTHING = "0 %"
LEAST_COMPARISONS = 300
# About as many benchmarks as a run without `--only` and `--suite` has.
WHOLE_RUN = 150
SECTION = "study"
TARGETS = {0: ("at most", 0.01), 3: ("at least", 0.80), 5: ("at least", 0.95)}


def exact_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate (Biometrika 26, 1934)."""
    tail = (1 - confidence) / 2

    def at_least(rate: float, least: int) -> float:
        return sum(
            math.comb(count, k) * rate**k * (1 - rate) ** (count - k)
            for k in range(least, count + 1)
        )

    def solve(least: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(middle, least) < wanted else (low, middle)
        return low

    lower = 0.0 if hits == 0 else solve(hits, tail)
    upper = 1.0 if hits == count else solve(hits + 1, 1 - tail)
    return lower, upper


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates by what was put in: comparisons one by one, and whole runs."""
    groups: dict[str, Any] = {}
    for name, kinds, units in (
        (NOTHING, ("equal", "slow"), 0),
        ("0 %, in runs of equal versions", ("equal",), 0),
        ("3 %", ("slow",), 3),
        ("5 %", ("slow",), 5),
    ):
        chosen = [
            one
            for run in runs
            if run["kind"] in kinds
            for one in run["comparisons"]
            if one["units"] == units
        ]
        measured = [one for one in chosen if one["ratio"] is not None]
        if not measured:
            continue
        found = sum(one["outcome"] == "REGRESSION" for one in chosen)
        groups[name] = {
            "units": units,
            "comparisons": len(chosen),
            "slower": found,
            "slower_rate": found / len(chosen),
            "slower_rate_interval": exact_interval(found, len(chosen)),
            "passed": sum(one["outcome"] == "OK" for one in chosen),
            "undecided": sum(one["outcome"] == "NOISY" for one in chosen),
            "without_figure": len(chosen) - len(measured),
            "alone": sum(_found_alone(one, run_rule(runs)) for one in measured),
            "alone_in_whole_run": sum(
                _found_in_whole_run(one, runs[0]["rule"]) for one in measured
            ),
            "estimates_percent": _quantiles([100 * (one["ratio"] - 1) for one in measured]),
            "half_width_percent": _quantiles(
                [50 * (one["interval"][1] - one["interval"][0]) for one in measured]
            ),
        }
    outcomes = {
        kind: _counted([run["outcome"] for run in runs if run["kind"] == kind])
        for kind in ("equal", "slow")
    }
    controls = [one for run in runs for one in run["controls"]]
    return {
        "groups": groups,
        "runs": outcomes,
        "controls": {"checks": len(controls), "held": _held(controls)},
        "seconds_per_run": _quantiles([run["seconds"] for run in runs]),
        "dates": [runs[0]["date"], runs[-1]["date"]],
        "machine": {name: runs[0][name] for name in ("cpu", "cores", "python", "torch")},
        "plan": runs[0]["plan"],
        "rule": runs[0]["rule"],
    }


def run_rule(runs: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """The one-sided level, and the number of benchmarks in a run."""
    return (1 - runs[0]["rule"]["confidence"]) / 2, len(runs[0]["comparisons"])


def _found_alone(one: dict[str, Any], rule: tuple[float, int]) -> bool:
    """Whether it would be found if no other id of the run were slower: Holm's strictest step."""
    tail, count = rule
    return one["p_slower"] * count <= tail


def _found_in_whole_run(one: dict[str, Any], rule: dict[str, float]) -> bool:
    """The same for a run of `WHOLE_RUN` benchmarks; true too often where the bootstrap decides.

    It is Student's tail of the restarts, and the p-value of this run where that is larger than what
    its bootstrap resolves.
    """
    values = [math.log(ratio) for ratio in one["restart_ratios"]]
    error = statistics.stdev(values) / math.sqrt(len(values))
    distance = statistics.fmean(values) - math.log1p(rule["threshold"])
    tail = student_tail(distance / error, len(values) - 1) if error else float(distance <= 0)
    if one["p_slower"] > 1.5 / (1 + RESAMPLES):
        tail = max(tail, one["p_slower"])
    return tail * WHOLE_RUN <= (1 - rule["confidence"]) / 2


def _held(controls: list[dict[str, Any]]) -> int:
    return sum(one["outcome"] == "OK" for one in controls)


def _counted(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(ordered[round(q * (len(ordered) - 1))], 3)
        for name, q in (("least", 0), ("p10", 0.1), ("median", 0.5), ("p90", 0.9), ("most", 1))
    }


def table(figures: dict[str, Any]) -> str:
    """The Markdown table of the docs."""
    lines = [
        "| put in | comparisons | called slower | 95 % interval of the rate | target | "
        f"found if it were the only one | among {WHOLE_RUN} | undecided | passed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in figures["groups"].items():
        low, high = group["slower_rate_interval"]
        word, bar = TARGETS[group["units"]]
        lines.append(
            f"| {name} | {group['comparisons']} | {group['slower']} "
            f"({group['slower_rate']:.1%}) | {low:.1%} to {high:.1%} | {word} {bar:.0%} | "
            f"{group['alone']} ({group['alone'] / group['comparisons']:.1%}) | "
            f"at most {group['alone_in_whole_run'] / group['comparisons']:.1%} | "
            f"{group['undecided']} | {group['passed']} |"
        )
    return "\n".join(lines)


def reached(figures: dict[str, Any]) -> bool:
    """Whether every rate meets its target, on at least the promised number of comparisons.

    A slowdown counts as found only if it were found as the only one of its run: Holm's correction
    is milder where more is slower.
    """
    groups = figures["groups"]
    if not {NOTHING, "3 %", "5 %"} <= set(groups):
        return False
    if groups[NOTHING]["comparisons"] < LEAST_COMPARISONS:
        return False
    return all(
        group["slower_rate"] <= bar
        if word == "at most"
        else group["alone"] >= bar * group["comparisons"]
        for group in groups.values()
        for word, bar in [TARGETS[group["units"]]]
    )


def section(figures: dict[str, Any], picture: str) -> str:
    """The docs' account of a study: where, when, with what, and what came out."""
    machine, plan, controls = figures["machine"], figures["plan"], figures["controls"]
    runs = ", ".join(
        f"{kind}: " + " and ".join(f"{count} {word}" for word, count in words.items())
        for kind, words in figures["runs"].items()
    )
    widths = figures["groups"][NOTHING]["half_width_percent"]
    verdict = "All targets are reached." if figures["targets_reached"] else "NOT all are reached."
    return "\n".join(
        [
            f"{figures['dates'][0]} to {figures['dates'][1]} UTC, {machine['cpu']}, "
            f"{machine['cores']} cores, Python {machine['python']}, "
            f"PyTorch {machine['torch']}; {plan['restarts']} restarts, threshold "
            f"{100 * figures['rule']['threshold']:g} %. {verdict}",
            "",
            table(figures),
            "",
            f"Exit of whole runs: {runs}. Base against base held in {controls['held']} of "
            f"{controls['checks']} checks. Median of a run's length: "
            f"{figures['seconds_per_run']['median']:.0f} s; of half an interval: "
            f"{widths['median']:.2f} %.",
            "",
            f"![Estimates and verdicts of the study]({picture})",
        ]
    )


def write_report(path: Path, page: Path) -> bool:
    """Write `<stem>.json` and `<stem>.png` beside the runs, and the section of the docs."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    figures = summary(runs)
    figures["targets_reached"] = reached(figures)
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    picture = path.with_suffix(".png").resolve()
    draw(runs, figures, picture)
    text = section(figures, os.path.relpath(picture, page.resolve().parent))
    put_section(page, SECTION, text)
    print(text)
    return figures["targets_reached"]


def draw(runs: Sequence[dict[str, Any]], figures: dict[str, Any], path: Path) -> None:
    """Estimates by what was put in, and how often each true slowdown is found."""
    picture, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    comparisons = [one for run in runs for one in run["comparisons"] if one["ratio"] is not None]
    colours = {0: "#4c72b0", 3: "#dd8452", 5: "#c44e52"}
    for units, colour in colours.items():
        values = sorted(100 * (one["ratio"] - 1) for one in comparisons if one["units"] == units)
        if not values:
            continue
        heights = [(i + 0.5) / len(values) for i in range(len(values))]
        left.plot(values, heights, color=colour, label=f"{units} % more work, n = {len(values)}")
        left.axvline(units, color=colour, linewidth=0.8, linestyle=":")
    threshold = 100 * figures["rule"]["threshold"]
    left.axvline(threshold, color="black", linewidth=0.8, linestyle="--", label="threshold")
    left.set(xlabel="estimated slowdown, %", ylabel="share of comparisons below", ylim=(0, 1))
    left.set_title("Estimates")
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
    places = [(name, group) for name, group in figures["groups"].items()]
    for place, (_, group) in enumerate(places):
        rate, (low, high) = group["slower_rate"], group["slower_rate_interval"]
        right.bar(place, 100 * rate, color=colours[group["units"]], width=0.6)
        right.errorbar(
            place,
            100 * rate,
            yerr=[[100 * (rate - low)], [100 * (high - rate)]],
            color="black",
            capsize=4,
        )
        word, bar = TARGETS[group["units"]]
        right.hlines(100 * bar, place - 0.4, place + 0.4, color="black", linestyle="--")
        right.annotate(
            f"{group['slower']} of {group['comparisons']}\n({word} {bar:.0%})",
            (place, 100 * min(high + 0.03, 1.03)),
            ha="center",
            fontsize=8,
        )
    right.set_xticks(range(len(places)), [name.replace(", ", "\n") for name, _ in places])
    right.set(ylabel="called slower, %", ylim=(0, 120), yticks=range(0, 101, 20))
    right.set_title("Verdicts, with 95 % intervals of the rates")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=130)
    plt.close(picture)
