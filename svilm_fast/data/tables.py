"""Rows of CSV and TSV text with their lines; stray quotes are read where that is unambiguous."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from svilm_fast.core.text import counted
from svilm_fast.data.errors import ListFormatError

_DELIMITERS = (",", ";", "\t", "|")
_BLOCK = 4096  # lines that are cut together


def column_name(text: str) -> str:
    """The name of a column however it is spelled: `Start Time` is `start_time`."""
    return "_".join(text.lower().split())


def split_lines(text: str) -> list[str]:
    r"""The lines of a text that ends them with \n, \r\n or \r; other separators are characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def line_blocks(text: str) -> Iterator[list[str]]:
    """The lines of a text as `split_lines` gives them, in blocks for `read_table`."""
    lines = split_lines(text)
    return (lines[start : start + _BLOCK] for start in range(0, len(lines), _BLOCK))


class _Lines:
    """Lines by their place, out of blocks of them; only those that are still needed are kept."""

    def __init__(self, blocks: Iterable[list[str]]) -> None:
        self._blocks, self._kept, self._first = iter(blocks), deque[str](), 0

    def reach(self, place: int) -> bool:
        """Whether there is a line at `place`."""
        while self._first + len(self._kept) <= place:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._kept.extend(block)
        return True

    def __getitem__(self, place: int) -> str:
        return self._kept[place - self._first]

    def forget(self, place: int) -> None:
        """Drop the lines before `place`."""
        if self._first + len(self._kept) == place:
            self._kept.clear()
            self._first = place
        while self._first < place:
            self._kept.popleft()
            self._first += 1

    def kept(self) -> list[str]:
        return list(self._kept)


def read_table(
    path: str, blocks: Iterable[list[str]], delimiter: str, known: Iterable[str]
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header's column names, and (line number, cells) of every row, as many as the header has.

    blocks: the lines, without their ends, some at a time; they are read as the rows are.

    The delimiter is `delimiter`, or the first of `, ; tab |` that makes one of the `known` column
    names appear in the header. A field in quotes may hold delimiters, doubled quotes and, in CSV,
    line ends. A line with other quotes is cut at every delimiter instead, its quotes kept, if that
    gives as many cells as the header has. Empty columns without a name at the end, as spreadsheets
    write them, are left out.

    Raises ListFormatError with the line and what is wrong with it.
    """
    lines, first = _Lines(blocks), 0
    while lines.reach(first) and not lines[first].strip():
        first += 1
        lines.forget(first)
    if not lines.reach(first):
        raise ListFormatError(f"{path}: no rows")
    delimiter, header = _header(path, lines[first], first + 1, delimiter, set(known))
    return header[: _named(header)], _rows(path, lines, first, delimiter, header)


def _rows(
    path: str, lines: _Lines, first: int, delimiter: str, header: list[str]
) -> Iterator[tuple[int, list[str]]]:
    named, width, number = _named(header), len(header), first + 1
    while lines.reach(number):
        lines.forget(number)
        block = lines.kept()
        end = number + len(block)
        if named == width and (rows := _plain_rows(block, delimiter, width)) is not None:
            yield from enumerate(rows, number + 1)
            number = end
            continue
        while number < end and lines.reach(number):
            lines.forget(number)
            line = lines[number]
            cells, used = line.split(delimiter), 1  # the same as below, without a parser
            if not line.strip():
                number += 1
                continue
            if '"' in line or len(cells) != width:
                cells, used = _row(path, lines, number, delimiter, width)
            if width > named and any(cell.strip() for cell in cells[named:]):
                raise ListFormatError(
                    f"{path}, line {number + 1}: a cell stands in a column without a name: name it "
                    f"in line {first + 1}, or empty the cell"
                )
            yield number + 1, cells[:named]
            number += used


def _plain_rows(block: list[str], delimiter: str, width: int) -> list[list[str]] | None:
    """The cells of every line; None if one of them is blank, has quotes or is cut wrongly."""
    if not all(map(str.strip, block)) or any('"' in line for line in block):
        return None
    rows = [line.split(delimiter) for line in block]
    return rows if set(map(len, rows)) == {width} else None


def _header(
    path: str, line: str, number: int, delimiter: str, known: set[str]
) -> tuple[str, list[str]]:
    found = {}
    for candidate in dict.fromkeys((delimiter, *_DELIMITERS)):
        try:
            cells = next(csv.reader([line], delimiter=candidate, strict=True))
        except csv.Error:
            cells = line.split(candidate)
        found[candidate] = [column_name(cell) for cell in cells]
        if known.intersection(found[candidate]):
            delimiter = candidate
            break
    header = found[delimiter]
    names = header[: _named(header)]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise ListFormatError(f"{path}, line {number}: the column {repeated[0]!r} appears twice")
    return delimiter, header


def _named(header: list[str]) -> int:
    """How many columns are left without the nameless ones at the end."""
    return max((place for place, name in enumerate(header, 1) if name), default=0)


def _row(
    path: str, lines: _Lines, number: int, delimiter: str, width: int
) -> tuple[list[str], int]:
    """The cells of the row that begins at index `number`, and how many lines it takes."""
    literal = lines[number].split(delimiter)
    following = (
        f"{lines[place]}\n" for place in itertools.takewhile(lines.reach, itertools.count(number))
    )
    reader = csv.reader(following, delimiter=delimiter, strict=True)
    try:
        cells = next(reader)
    except csv.Error as error:
        # An open quote at the end of a CSV file may be a file that was cut.
        if len(literal) == width and (delimiter == "\t" or not _is_open(error)):
            return literal, 1
        raise ListFormatError(f"{path}, line {number + 1}: {_reason(error, delimiter)}") from None
    used = reader.line_num
    # In TSV a quote at the start of a field is more often a stray one than one of several lines.
    if delimiter == "\t" and used > 1:
        places = range(number, number + used)
        parts = [len(line.split(delimiter)) for line in map(lines.__getitem__, places)]
        if set(parts) == {width}:
            return literal, 1
    if len(cells) == width:
        return [cell.removesuffix("\n") for cell in cells], used
    name = {"\t": "tab"}.get(delimiter, repr(delimiter))
    raise ListFormatError(
        f"{path}, line {number + 1}: expected {counted(width, 'column')} and found {len(cells)}, "
        "separated by "
        f"{name}; quote captions that hold the separator"
    )


def _is_open(error: csv.Error) -> bool:
    return "end of data" in str(error)


def _reason(error: csv.Error, delimiter: str) -> str:
    text = str(error)
    if "expected after" in text:
        return (
            "a field in quotes continues after its closing quote; double the quotes inside a field "
            '("a ""big"" dog"), or leave them out'
        )
    if _is_open(error):
        return "a field begins with a quote that is never closed; close it or leave it out"
    return text
