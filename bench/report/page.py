"""bench.html: one file with all pictures and figures of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.bench.gpu.constants import FILE, line_of, read_comparisons
from svilm_fast.bench.report import texts
from svilm_fast.bench.report.batch_scaling import draw_scaling, families
from svilm_fast.bench.report.history import draw_history, series
from svilm_fast.bench.report.peer_comparison import (
    STATUSES,
    compared_cases,
    draw_comparison,
    ratios_to_eager,
)
from svilm_fast.bench.report.roofline import draw_roofline, has_roofline
from svilm_fast.bench.run.file import Results
from svilm_fast.bench.run.record import OWN_PROVIDERS, Record
from svilm_fast.bench.run.text import differences, status_text
from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.units import (
    bytes_text,
    count_text,
    percent_text,
    rate_text,
    ratio_text,
    time_text,
)
from svilm_fast.report.page import HeadlineTile, Section, fill_template, picture

# More cases are split into several pictures, none higher than a screen.
CASES_PER_PICTURE = 8


@dataclass(frozen=True)
class TableLine:
    """A row of the table of all figures; a `problem` replaces the cells."""

    label: str
    own: bool
    cells: tuple[str, ...]
    problem: str = ""
    skipped: bool = False


def build_page(results: Results, sections: Sequence[Section]) -> str:
    """The page as text, with the pictures of `sections_of`; deterministic."""
    facts = results.environment
    records = list(results.records.values())
    commit = str(facts.get("commit") or "unknown")[:12] + (", changed" if results.dirty else "")
    end = "" if results.complete else " · stopped before its end"
    return fill_template(
        "bench.html",
        "svilm_fast.bench.report",
        name=str(facts.get("gpu") or facts.get("cpu") or "unknown machine"),
        subtitle=f"commit {commit} · measured {facts.get('time', 'at an unknown time')}{end}",
        tiles=tiles_of(records, results),
        sections=sections,
        groups=groups_of(records),
        facts=facts_of(facts),
    )


def sections_of(
    results: Results, history: Sequence[Results] = (), others: int = 0
) -> list[Section]:
    """Sections with the pictures that the records allow.

    history: runs of this machine, `results` last. others: the number of runs of other machines.
    """
    records, ceilings = list(results.records.values()), results.ceilings
    found = []
    if has_roofline(records, ceilings):
        drawn = picture(
            "roofline", lambda t: draw_roofline(records, ceilings, t), texts.ROOFLINE_ALT
        )
        found.append(Section("Roofline", texts.ROOFLINE, [("", drawn)]))
    if side_by_side := compared_cases(records, results.ratios):
        note = texts.PEERS_PAIRED if results.ratios else texts.PEERS_APART
        section = Section("Peers side by side", texts.PEERS, notes=[note, *differences(records)])
        for start in range(0, len(side_by_side), CASES_PER_PICTURE):
            part = side_by_side[start : start + CASES_PER_PICTURE]
            name = "peers" if not start else f"peers_{start // CASES_PER_PICTURE + 1}"
            drawn = picture(name, lambda t, part=part: draw_comparison(part, t), texts.PEERS_ALT)  # type: ignore[misc]
            section.pictures.append(("", drawn))
        found.append(section)
    if (beside := results.path.with_name(FILE)).is_file():
        lines = [line_of(row) for row in read_comparisons(beside)]
        found.append(Section("Assumed and measured", texts.CONSTANTS, notes=lines))
    if growing := families(records):
        drawn = picture("scaling", lambda t: draw_scaling(growing, t), texts.SCALING_ALT)
        found.append(Section("Scaling with the batch", texts.SCALING, [("", drawn)]))
    if len(history) > 1 and series(history):
        drawn = picture("history", lambda t: draw_history(history, t), texts.HISTORY_ALT)
        notes = [f"{others} results of other machines were left out."] if others else []
        found.append(Section("History", texts.HISTORY, [("", drawn)], notes=notes))
    return found


def tiles_of(records: Sequence[Record], results: Results) -> list[HeadlineTile]:
    """Headline figures: the number of measurements, and the ceilings."""
    measured = [record for record in records if record.time_ms]
    skipped = sum(record.skipped for record in records)
    failed = len(records) - len(measured) - skipped
    left = f"{skipped} skipped" if skipped else "none skipped"
    tiles = [
        HeadlineTile(f"{len(measured)}", f"of {len(records)} benchmarks measured", left),
        HeadlineTile(f"{failed}", "without a figure", "see the table" if failed else "none failed"),
    ]
    if "product_flops" in results.ceilings:
        value = rate_text(results.ceilings["product_flops"], "FLOP/s")
        tiles.append(HeadlineTile(value, "product ceiling", "measured in this run"))
    if "copy_bytes" in results.ceilings:
        value = rate_text(results.ceilings["copy_bytes"], "B/s")
        tiles.append(HeadlineTile(value, "copy ceiling", "measured in this run"))
    if ratios := ratios_to_eager(records):
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        label = "eager's time over ours"
        tiles.append(
            HeadlineTile(ratio_text(mean), label, f"geometric mean of {len(ratios)} cases")
        )
    return tiles


def groups_of(records: Sequence[Record]) -> list[tuple[str, list[TableLine]]]:
    """The table of all figures, a group per case."""
    groups: dict[str, list[TableLine]] = {}
    for record in records:
        title = " · ".join(
            part for part in (record.suite, record.name, record.case, record.dtype) if part
        )
        groups.setdefault(title, []).append(_line(record))
    return list(groups.items())


def facts_of(environment: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The environment as small tables, without unknown facts."""
    tables: dict[str, dict[str, str]] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            entries = {str(k): str(v) for k, v in value.items() if v not in (None, "")}
            if entries:
                tables[key.replace("_", " ")] = entries
        elif value not in (None, ""):
            shown = bytes_text(value) if key.endswith("_bytes") else str(value)
            tables.setdefault("machine and versions", {})[key.replace("_", " ")] = shown
    return dict(sorted(tables.items(), key=lambda item: item[0] != "machine and versions"))


def write_page(path: Path, page: str) -> None:
    """Write the page; raises ValueError if it would replace a file of another kind."""
    check_replaceable(path, "svilm-fast benchmark</title>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _line(record: Record) -> TableLine:
    label, own = f"{record.direction}, {record.provider}", record.provider in OWN_PROVIDERS
    if not record.time_ms:
        status = status_text(record)
        return TableLine(label, own, (), STATUSES.get(status, status), record.skipped)
    spread = ""
    if record.p20_ms and record.p80_ms:
        spread = f"{time_text(record.p20_ms)} .. {time_text(record.p80_ms)}"
    rates = ", ".join(f"{count_text(value)} {unit}/s" for unit, value in record.rates_per_s.items())
    cells = (
        time_text(record.time_ms),
        spread,
        percent_text(record.floor_fraction),
        record.binding_ceiling,
        bytes_text(record.peak_extra_bytes),
        time_text(record.host_us / 1e3) if record.host_us else "",
        "" if record.error is None else f"{record.error:.1e}",
        rates,
    )
    return TableLine(label, own, cells)
