"""The results of a table: values by row, column and seed, with means, ranges and differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import svilm_fast
from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.train.campaigns.execute import finished
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.table import ResultTable

SCHEMA = 1


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
    out: Path,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return the table's JSON. Raises UserError if a run lacks a metric that a column reads."""
    sections: dict[str, Any] = {}
    environments: list[dict[str, Any]] = []
    steps: dict[str, int] = {}
    for key, section in table.sections.items():
        rows: dict[str, Any] = {}
        for label, run in section.rows.items():
            values: dict[str, list[float | None]] = {metric: [] for metric in section.columns}
            for seed in seeds:
                job = jobs[run, seed]
                kept = finished(out, job)
                if kept is None:
                    raise UserError(f"{job.label} has no result; run the table again")
                steps[run] = kept["steps"]
                environments.append(kept["environment"])
                for metric, found in values.items():
                    found.append(_metric(kept["metrics"], metric, job))
            rows[label] = {"run": run, "values": values}
        sections[key] = {
            "title": section.title,
            "text": section.text,
            "columns": section.columns,
            "compare": section.compare,
            "rows": rows,
        }
    described = [each for i, each in enumerate(environments) if each not in environments[:i]]
    return {
        "schema": SCHEMA,
        "table": name,
        "title": table.title,
        "text": table.text,
        "version": svilm_fast.__version__,
        "seeds": list(seeds),
        "steps": steps,
        "sections": sections,
        "environments": described,
    }


def _metric(metrics: Mapping[str, Any], name: str, job: TableJob) -> float:
    value = metrics.get(name)
    if isinstance(value, int | float):
        return float(value)
    near = sorted(key for key in metrics if key.partition("/")[0] == name.partition("/")[0])
    raise UserError(
        f"{job.label} has no metric {name!r}; it has {', '.join(near or sorted(metrics)[:12])}"
    )


def differences(section: Mapping[str, Any], label: str, metric: str) -> list[float] | None:
    """Return a row's values minus those of the row `compare`, seed by seed; None: nothing to do."""
    compare = section["compare"]
    if compare is None or label == compare:
        return None
    own = section["rows"][label]["values"][metric]
    other = section["rows"][compare]["values"][metric]
    return [a - b for a, b in zip(own, other, strict=True)]


def rendered(section: Mapping[str, Any], label: str, metric: str) -> str:
    """Return a cell: mean, range over seeds, and the mean difference with its range."""
    values = section["rows"][label]["values"][metric]
    spread = SeedSpread.of(values)
    text = f"{spread.mean:.1f}"
    if len(values) > 1:
        text += f" ({spread.low:.1f} to {spread.high:.1f})"
    change = differences(section, label, metric)
    if change is not None:
        found = SeedSpread.of(change)
        text += f"; {found.mean:+.1f}"
        if len(change) > 1:
            text += f" ({found.low:+.1f} to {found.high:+.1f})"
    return text


def seeds_text(result: Mapping[str, Any]) -> str:
    """Describe the seeds."""
    return f"{counted(len(result['seeds']), 'seed')} ({', '.join(map(str, result['seeds']))})"
