"""The results of a table: values by row, column and seed, with means, ranges and differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import svilm_fast
from svilm_fast.core.errors import UserError
from svilm_fast.core.outcomes import cluster_numbers
from svilm_fast.core.text import counted
from svilm_fast.data.world.write import FORMAT
from svilm_fast.train.campaigns.bootstrap import Interval
from svilm_fast.train.campaigns.comparisons import add_intervals, with_interval
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.store import ResultStore
from svilm_fast.train.campaigns.table import ResultTable

SCHEMA = 1
MARK = "◆"  # at an interval that excludes zero
UNRECORDED = "unrecorded"  # commit of a result that does not name one


@dataclass(frozen=True)
class SeedSpread:
    """Mean, smallest and largest value over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedSpread:
        """Summarize at least one value."""
        return cls(statistics.fmean(values), min(values), max(values))


def gather(
    name: str,
    table: ResultTable,
    jobs: Mapping[tuple[str, int], TableJob],
    store: ResultStore,
    seeds: Sequence[int],
    command: str = "",
) -> dict[str, Any]:
    """Return the table's JSON. Raises UserError if a run lacks a metric that a column reads.

    command: what makes this table again.

    The metrics of a row are those of its runs, of the last training before each and of the commands
    before it; the nearest one counts.
    """
    sections: dict[str, Any] = {}
    environments: list[dict[str, Any]] = []
    commits: set[str] = set()
    steps: dict[str, int] = {}
    for key, section in table.sections.items():
        rows: dict[str, Any] = {}
        answered: dict[str, list[Sequence[str]]] = {}
        for label, runs in section.rows.items():
            values: dict[str, list[float]] = {metric: [] for metric in section.columns}
            shares: dict[str, list[str]] = {}
            for seed in seeds:
                row = _row([jobs[run, seed] for run in runs], store)
                steps[runs[0]] = row.steps
                environments.append(row.environment)
                commits |= row.commits
                for metric, found in values.items():
                    found.append(_metric(row.metrics, metric, jobs[runs[0], seed]))
                    if metric in row.shares:
                        clusters, text = row.shares[metric]
                        shares.setdefault(metric, []).append(text)
                        answered.setdefault(metric, []).append(clusters)
            rows[label] = {"run": runs[0], "values": values, "shares": shares}
        sections[key] = {
            "title": section.title,
            "text": section.text,
            "follows": section.follows,
            "columns": section.columns,
            "compare": section.compare,
            "queries": _common_queries(answered, len(rows) * len(seeds), rows),
            "rows": rows,
        }
        add_intervals(sections[key])
        sections[key]["claims"] = [with_interval(sections[key], claim) for claim in section.claims]
    described = [each for i, each in enumerate(environments) if each not in environments[:i]]
    return {
        "schema": SCHEMA,
        "table": name,
        "title": table.title,
        "text": table.text,
        "version": svilm_fast.__version__,
        "world": FORMAT,
        "command": command or f"svilm ablate {name}",
        "commits": sorted(commits),
        "seeds": list(seeds),
        "steps": steps,
        "sections": sections,
        "environments": described,
    }


@dataclass(frozen=True)
class _RowOfSeed:
    """shares: clusters and shares of the queries, by metric. commits: of the code of its runs."""

    metrics: dict[str, float]
    shares: dict[str, tuple[Sequence[str], str]]
    steps: int
    environment: dict[str, Any]
    commits: set[str]


def _row(joined: Sequence[TableJob], store: ResultStore) -> _RowOfSeed:
    """Join what the jobs of a row and those before them measured.

    Metrics of an earlier training do not count for a later one.
    """
    metrics: dict[str, float] = {}
    shares: dict[str, tuple[Sequence[str], str]] = {}
    results, commits = [], set()
    for job in joined:
        chain = job.chain()
        trained = [link for link in chain if link.trains][-1:]
        kept = [_kept(store, link) for link in chain if not link.trains or link in trained]
        results.append(kept[-1])
        commits |= {_kept(store, link).get("commit") or UNRECORDED for link in chain}
        found: dict[str, float] = {}
        answered: dict[str, tuple[Sequence[str], str]] = {}
        for each in kept:
            found |= each.get("metrics", {})
            # Queries of an earlier run say nothing of a metric that a later one measured anew.
            answered = {m: one for m, one in answered.items() if m not in each.get("metrics", {})}
            for outcome in each.get("outcomes", []):
                for metric, text in outcome["shares"].items():
                    answered[metric] = (outcome["clusters"], text)
        shares |= {metric: one for metric, one in answered.items() if metric not in metrics}
        metrics = found | metrics
    return _RowOfSeed(metrics, shares, results[0]["steps"], results[0]["environment"], commits)


def _kept(store: ResultStore, job: TableJob) -> dict[str, Any]:
    kept = store.find(job)
    if kept is None:
        raise UserError(f"{job.label} has no result; run the table again")
    return kept


def _common_queries(
    answered: Mapping[str, Sequence[Sequence[str]]], runs: int, rows: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the clusters of the queries of each metric whose queries are those of every run.

    The shares of other metrics are removed from the rows: they cannot be paired.
    """
    found = {}
    for metric, lists in answered.items():
        if len(lists) == runs and all(each == lists[0] for each in lists):
            numbers, digest = cluster_numbers(lists[0])
            found[metric] = {"clusters": numbers, "sha256": digest}
        else:
            for row in rows.values():
                row["shares"].pop(metric, None)
    return found


def _metric(metrics: Mapping[str, Any], name: str, job: TableJob) -> float:
    value = metrics.get(name)
    if isinstance(value, int | float):
        return float(value)
    near = sorted(key for key in metrics if key.partition("/")[0] == name.partition("/")[0])
    raise UserError(
        f"{job.label} has no metric {name!r}; it has {', '.join(near or sorted(metrics)[:12])}. If "
        f"its result is older than the metric, remove {job.folder.name}.json and the run's folder"
    )


def differences(section: Mapping[str, Any], label: str, metric: str) -> list[float] | None:
    """Return a row's values minus those of the row `compare`, seed by seed; None: nothing to do."""
    compare = section["compare"]
    if compare is None or label == compare:
        return None
    own = section["rows"][label]["values"][metric]
    other = section["rows"][compare]["values"][metric]
    return [a - b for a, b in zip(own, other, strict=True)]


def interval(section: Mapping[str, Any], label: str, metric: str) -> Interval | None:
    """Return the interval of a row's difference to `compare`; None: no row, or too few seeds."""
    found = section["rows"][label].get("intervals", {}).get(metric)
    return None if found is None else Interval(**found)


def rendered(section: Mapping[str, Any], label: str, metric: str) -> str:
    """Return a cell: mean and range over seeds; mean difference with its interval or range."""
    values = section["rows"][label]["values"][metric]
    places = digits(section, metric)
    text = _spread_text(SeedSpread.of(values), len(values), f".{places}f")
    change = differences(section, label, metric)
    if change is None:
        return text
    found, ends, form = SeedSpread.of(change), interval(section, label, metric), f"+.{places}f"
    if ends is None:
        return f"{text}; {_spread_text(found, len(change), form)}"
    mark = f" {MARK}" if ends.excludes_zero else ""
    return f"{text}; {found.mean:{form}} [{ends.low:{form}} to {ends.high:{form}}]{mark}"


def _spread_text(found: SeedSpread, count: int, form: str) -> str:
    text = f"{found.mean:{form}}"
    if count == 1 or found.low == found.high:
        return text
    return f"{text} ({found.low:{form}} to {found.high:{form}})"


def digits(section: Mapping[str, Any], metric: str) -> int:
    """Return the digits after the point: one for percentages, more where all values are small."""
    rows = section["rows"].values()
    largest = max(abs(value) for row in rows for value in row["values"][metric])
    return 1 if largest >= 10 else 2 if largest >= 1 else 3


def seeds_text(result: Mapping[str, Any]) -> str:
    """Describe the seeds."""
    return f"{counted(len(result['seeds']), 'seed')} ({', '.join(map(str, result['seeds']))})"
