"""The tables of counts under version control, and their differences from new counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from svilm_fast.bench.tables import read_csv, write_csv

Kind = Literal["instructions", "collectives", "waits", "memory"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RESULTS = Path(__file__).resolve().parents[1] / "results" / "counts"
# Three times the widest spread between processes (0.3 %, docs/gates.md); the others repeat exactly.
TOLERANCE: Mapping[str, float] = {"instructions": 0.01}


@dataclass(frozen=True)
class CountRow:
    """One count. `item` says what is counted in `case`: a collective, an operator, `per call`."""

    kind: str
    case: str
    item: str
    count: int
    bytes: int = 0

    @property
    def key(self) -> str:
        """What identifies the row across versions of the table."""
        return f"{self.kind} | {self.case} | {self.item}"


def table_path(kinds: Iterable[str], facts: Mapping[str, str]) -> Path:
    """The table of these kinds: instructions have one per set of versions, other kinds one."""
    if set(kinds) == {"instructions"}:
        version = f"python-{facts['python']}-torch-{facts['torch']}-{fingerprint(facts)}"
        return RESULTS / f"instructions-{version}.csv"
    return RESULTS / "portable.csv"


def fingerprint(facts: Mapping[str, str]) -> str:
    """Hash of the facts that instruction counts depend on."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:8]


def write_table(rows: Iterable[CountRow], path: Path) -> None:
    """Write rows in the order of their keys."""
    write_csv(rows, path)


def read_table(path: Path) -> list[CountRow]:
    """Read a table; raises ValueError for a damaged one."""
    return read_csv(path, CountRow, made_by="svilm bench counts --write")


def differences(
    recorded: Iterable[CountRow], counted: Iterable[CountRow]
) -> tuple[list[str], list[str]]:
    """Readable lines: (changed counts, missing or new cases); a lower count is a change too."""
    old, new = {row.key: row for row in recorded}, {row.key: row for row in counted}
    changed: list[str] = []
    unmatched: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before is None or after is None:
            # A new collective or wait is an additional cost in a known case, not a new benchmark.
            text = _appeared(after) if before is None else _vanished(before)
            kind = (before or after).kind  # type: ignore[union-attr]
            (changed if kind in ("collectives", "waits") else unmatched).append(f"{key}: {text}")
        elif (change := _change(before, after)) is not None:
            changed.append(f"{key}: {change}")
    return changed, unmatched


def _appeared(row: CountRow | None) -> str:
    assert row is not None
    return f"not in the table, now {row.count:,}" + (f" ({row.bytes:,} bytes)" if row.bytes else "")


def _vanished(row: CountRow) -> str:
    return f"{row.count:,} in the table, now none"


def _change(before: CountRow, after: CountRow) -> str | None:
    allowed = TOLERANCE.get(before.kind, 0.0) * before.count
    if abs(after.count - before.count) <= allowed and after.bytes == before.bytes:
        return None
    text = f"{before.count:,} -> {after.count:,} ({after.count / max(before.count, 1) - 1:+.2%})"
    if after.bytes != before.bytes:
        text += f", bytes {before.bytes:,} -> {after.bytes:,}"
    return text
