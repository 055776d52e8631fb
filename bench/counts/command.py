"""`svilm bench counts`: prints, writes or checks the tables of counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.counts.callgrind import Unavailable, count_instructions
from svilm_fast.bench.counts.peak import count_peaks
from svilm_fast.bench.counts.ranks import count_on_ranks
from svilm_fast.bench.counts.table import (
    KINDS,
    CountRow,
    differences,
    read_table,
    table_path,
    write_table,
)
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.messages import check_known
from svilm_fast.core.terminal import print


def counts(
    kind: Annotated[
        list[str] | None, typer.Option(help=f"only these (repeat): {', '.join(KINDS)}")
    ] = None,
    only: Annotated[str, typer.Option(help="only cases that match this shell pattern")] = "*",
    check: Annotated[
        bool, typer.Option("--check", help="compare with the tables under version control")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="write the tables, or their cases that --only names")
    ] = False,
) -> None:
    """Count instructions, collectives, host waits and peak bytes; compare with their tables.

    Exit status: 0 fine, 1 a count differs from its table, 2 wrong usage, 3 no table for these
    versions, 4 a kind could not be counted here or a case has no row.
    """
    chosen = list(dict.fromkeys(kind or KINDS))
    check_known("kind", chosen, KINDS)
    found: list[ExitCode] = []
    for kinds in (["instructions"], [name for name in chosen if name != "instructions"]):
        if set(kinds) <= set(chosen) and kinds:
            found.append(_one_table(kinds, only, check=check, write=write))
    exit_code = max(found)
    if check:
        print(
            "all counts are as recorded"
            if exit_code is ExitCode.OK
            else f"exit code: {exit_code.name}"
        )
    raise typer.Exit(int(exit_code))


def count(kinds: Iterable[str], only: str = "*") -> tuple[list[CountRow], dict[str, str]]:
    """New counts of some kinds and cases, and the facts that instruction counts depend on."""
    rows: list[CountRow] = []
    facts: dict[str, str] = {}
    wanted = set(kinds)
    if "instructions" in wanted:
        totals, facts = count_instructions(only)
        rows += [
            CountRow("instructions", case, "per call", total) for case, total in totals.items()
        ]
    if wanted & {"collectives", "waits"}:
        rows += [row for row in _rows_of_ranks(count_on_ranks()) if row.kind in wanted]
    if "memory" in wanted:
        rows += [CountRow("memory", case, "peak", 1, total) for case, total in count_peaks()]
    return [row for row in rows if fnmatchcase(row.case, only)], facts


def _rows_of_ranks(found: dict[str, dict[str, Any]]) -> Iterator[CountRow]:
    for case, counted in found.items():
        for item, (calls, size) in counted["collectives"].items():
            yield CountRow("collectives", case, item, calls, size)
        for item, calls in counted["waits"].items():
            yield CountRow("waits", case, item, calls)


def _one_table(kinds: list[str], only: str, *, check: bool, write: bool) -> ExitCode:
    try:
        rows, facts = count(kinds, only)
    except Unavailable as missing:
        print(f"skipped: instructions were not counted, {missing}")
        return ExitCode.MISSING
    path = table_path(kinds, facts)
    recorded = read_table(path) if path.is_file() else []
    if not check:
        _print(rows)
    part = [row for row in recorded if row.kind in kinds and fnmatchcase(row.case, only)]
    if not rows and not part:
        raise ValueError(f"no case of {', '.join(kinds)} matches {only!r}")
    exit_code = _judged(rows, part, path) if check else ExitCode.OK
    if write:
        write_table([row for row in recorded if row not in part] + rows, path)
        print(f"wrote {len(rows)} rows to {path.name}")
    return exit_code


def _judged(rows: list[CountRow], recorded: list[CountRow], path: Path) -> ExitCode:
    if not recorded:
        print(f"no table {path.name}: nothing to compare these counts with")
        return ExitCode.INCOMPARABLE
    changed, unmatched = differences(recorded, rows)
    for line in changed + unmatched:
        print(f"! {line}")
    if changed or unmatched:
        accept = "accept the change with `svilm bench counts --write`"
        print(f"{path.name} differs: fix the code, or {accept}")
    if unmatched:
        return ExitCode.MISSING
    return ExitCode.REGRESSION if changed else ExitCode.OK


def _print(rows: list[CountRow]) -> None:
    table = terminal_table(("kind", "case", "item", "count", "bytes"), right=("count", "bytes"))
    for row in sorted(rows, key=lambda row: row.key):
        size = f"{row.bytes:,}" if row.bytes else ""
        table.add_row(row.kind, row.case, row.item, f"{row.count:,}", size)
    wide_console(140).print(table)
