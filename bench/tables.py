"""Tables: on a terminal, as Markdown, and as CSV under version control."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from rich.table import Table


class KeyedRow(Protocol):
    """A dataclass of numbers, truth values and texts; `key` identifies it across versions."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str: ...


Row = TypeVar("Row", bound=KeyedRow)
_PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "bool": {"True": True, "False": False}.__getitem__,
    "str": str,
}


def terminal_table(
    columns: Sequence[str], *, right: Collection[str] = (), title: str = ""
) -> Table:
    """An empty table for a terminal; right: the columns of numbers, which are never wrapped."""
    table = Table(box=None, pad_edge=False, title=title or None)
    for name in columns:
        number = name in right
        table.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def markdown_row(cells: Iterable[object]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Iterable[object]], *, right: Collection[str] = ()
) -> list[str]:
    """The lines of a Markdown table; right: the columns of numbers."""
    rule = "|".join("---:" if name in right else "---" for name in columns)
    return [markdown_row(columns), f"|{rule}|", *map(markdown_row, rows)]


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write one or more rows of one class in the order of their keys."""
    ordered = sorted(rows, key=lambda row: row.key)
    columns = [each.name for each in fields(ordered[0])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in ordered)


def read_csv(path: Path, row: type[Row], *, made_by: str) -> list[Row]:
    """Read what `write_csv` wrote.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one; the message names
    the command `made_by`, which writes the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table {path.name}; write one with `{made_by}`")
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    try:
        return [_parsed(record, row) for record in records]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} is damaged ({error}); write it again with `{made_by}`"
        ) from error


def _parsed(record: dict[str, str], row: type[Row]) -> Row:
    columns = fields(row)
    return row(**{each.name: _PARSERS[str(each.type)](record[each.name]) for each in columns})
