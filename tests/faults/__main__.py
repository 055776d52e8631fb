"""`python -m tests.faults`: performs the rows of the table and prints the results."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from svilm_fast.train.environment import package_versions
from tests.faults import ALL_ROWS
from tests.faults.registry import Row, Tries
from tests.faults.rig import Rig


def perform(rig: Rig, row: Row) -> dict[str, Any]:
    """Perform a row and return its record."""
    seen, began = Tries(), time.monotonic()
    wanted = row.short if rig.short else row.tries
    try:
        row.perform(rig, wanted, seen)
    except Exception as error:  # what fails outside of a try fails the row
        seen.missed.append(f"the row itself: {type(error).__name__}: {error}")
    return {
        "row": row.number,
        "fault": row.fault,
        "target": row.target,
        "tries": seen.made,
        "survived": seen.survived,
        "met": seen.made >= wanted and seen.survived == seen.made and not seen.missed,
        "seconds": round(time.monotonic() - began, 1),
        "missed": seen.missed,
        "notes": seen.notes,
    }


def table_of(records: Sequence[dict[str, Any]]) -> Table:
    table = Table("#", "fault", "tries", "target", "survived", "s", show_lines=True)
    for record in records:
        colour = "green" if record["met"] else "red"
        table.add_row(
            str(record["row"]),
            record["fault"],
            str(record["tries"]),
            record["target"],
            f"[{colour}]{record['survived']}[/]",
            f"{record['seconds']:.0f}",
        )
    return table


def write_record(path: Path, records: list[dict[str, Any]], *, short: bool, seed: int) -> None:
    """Write the results so far, with platform and package versions."""
    described = {
        "form": "short" if short else "full",
        "seed": seed,
        "platform": platform.platform(),
        "packages": package_versions(),
        "rows": records,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=2) + "\n")


def run_rows(
    numbers: Sequence[int], *, short: bool, seed: int = 0, out: Path | None = None
) -> list[dict[str, Any]]:
    """Perform rows in a temporary folder; returns their records and writes them after each row."""
    records: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="svilm-faults-") as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        Rig(Path(folder), short=short, seed=seed) as rig,
    ):
        task = progress.add_task("faults", total=len(numbers))
        for number in numbers:
            row = ALL_ROWS[number]
            progress.update(task, description=f"row {number}: {row.fault[:50]}")
            record = perform(rig, row)
            records.append(record)
            if out:
                write_record(out, records, short=short, seed=seed)
            for line in record["missed"]:
                progress.console.print(f"row {number} missed: {line}", markup=False)
            progress.advance(task)
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, perform the rows; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=sorted(ALL_ROWS), metavar="N")
    parser.add_argument("--short", action="store_true", help="few tries of each row, for CI")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which faults come")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    given = parser.parse_args(arguments)
    numbers = given.rows or sorted(ALL_ROWS)
    records = run_rows(numbers, short=given.short, seed=given.seed, out=given.out)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table_of(records))
    for record in records:
        for line in record["notes"]:
            console.print(f"row {record['row']}: {line}", markup=False)
    met = sum(record["met"] for record in records)
    console.print(f"{met} of {len(records)} rows meet their target")
    return 0 if met == len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
