"""What the readers of public formats share: text, tables, JSON; every error names its place."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from svilm_fast.core.collection import collection_paused
from svilm_fast.core.text import counted
from svilm_fast.data import files
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.json_blocks import decode_lines, no_key_twice
from svilm_fast.data.tables import line_blocks, read_table, split_lines
from svilm_fast.data.text import decode_utf8

FILE_BYTES = 1 << 32
_BLOCK = 4096  # entries that are looked at together
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|-?Infinity|NaN', re.DOTALL)


def read_text(path: str) -> str:
    """The UTF-8 text of a file, a byte order mark removed. Raises ListFormatError."""
    return decode_utf8(files.read_bytes(path, FILE_BYTES), path, ListFormatError)


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """(line number, text without white space around it) of every line that is not blank."""
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if stripped := line.strip():
            yield number, stripped


def read_rows(
    path: str, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column name) of a table with a header line.

    columns: must be in the header; others are kept. Names are read in lower case.
    Raises ListFormatError.
    """
    header, rows = read_columns(path, columns, delimiter=delimiter)
    for line, cells in rows:
        yield line, dict(zip(header, cells))


def read_columns(
    path: str, columns: Sequence[str], *, delimiter: str = ","
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of all columns, and (line number, cells) of every row; as `read_rows`."""
    header, rows = read_table(path, line_blocks(read_text(path)), delimiter, columns)
    missing = [name for name in columns if name not in header]
    if missing:
        raise ListFormatError(f"{path}, line 1: no column {missing[0]!r} among {', '.join(header)}")
    return header, rows


def blocks_of(rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Numbers and rows, many at a time."""
    while block := list(itertools.islice(rows, _BLOCK)):
        numbers, found = zip(*block)
        yield numbers, found


def read_cells(path: str, count: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a table without a header; quotes are characters like others.

    Raises ListFormatError for a line with another number of cells.
    """
    shown = {"\t": "tabs", ",": "commas"}.get(delimiter, repr(delimiter))
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if not line.strip():
            continue
        cells = line.split(delimiter)
        if len(cells) != count:
            raise ListFormatError(
                f"{path}, line {number}: expected {counted(count, 'column')} separated by {shown} "
                f"and found {len(cells)}"
            )
        yield number, cells


class _Refused(ValueError):
    """JSON that Python reads and the format does not allow."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {twice!r} appears twice in one object")
    return record


def _constant(name: str) -> float:
    raise _Refused(f"{name} is not a JSON number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
# Takes two thirds of the time, and does not see a key that occurs twice in an object.
_PLAIN = json.JSONDecoder(parse_constant=_constant)


def parse_strict(text: str, label: str, *, first_line: int | None = 1) -> Any:
    """The value of a JSON text; duplicate keys, NaN and Infinity are errors.

    label: the file. first_line: added to the line number in errors; None: `label` names the line.
    Raises ListFormatError.
    """
    try:
        with collection_paused():
            with contextlib.suppress(ValueError, RecursionError):
                if no_key_twice(text, value := _PLAIN.decode(text)):
                    return value
            return _STRICT.decode(text)
    except json.JSONDecodeError as error:
        line, what = error.lineno, f"not valid JSON ({error.msg}, column {error.colno})"
    except _Refused as error:
        line, what = _refused_line(text), str(error)
    except (ValueError, RecursionError) as error:  # too many digits, too deep
        raise ListFormatError(f"{label}: not valid JSON ({error})") from None
    where = label if first_line is None else f"{label}, line {line + first_line - 1}"
    raise ListFormatError(f"{where}: {what}")


def _refused_line(text: str) -> int:
    """The line of the first constant, or where the first object ends that holds a key twice."""
    stack: list[int] = []
    for token in _TOKEN.finditer(text):
        kind = token[0][0]
        if kind == "{":
            stack.append(token.start())
        elif kind == "}":
            try:
                json.loads(text[stack.pop() : token.end()], object_pairs_hook=_shallow)
            except _Refused:
                return text.count("\n", 0, token.end()) + 1
        elif kind != '"':
            return text.count("\n", 0, token.start()) + 1
    return 1


def _shallow(pairs: list[tuple[str, Any]]) -> None:
    _object([(name, None) for name, _ in pairs])


def read_json(path: str) -> Any:
    """The value in a JSON file; duplicate keys and NaN are errors. Raises ListFormatError."""
    return parse_strict(read_text(path), path)


def read_json_lines(path: str) -> Iterator[tuple[Sequence[int], list[dict[str, Any]]]]:
    """(line numbers, objects) of lines of a JSONL file, many or one at a time.

    Raises ListFormatError.
    """
    end = 1
    for lines in line_blocks(read_text(path)):
        first, end = end, end + len(lines)
        if not lines[-1]:  # after the last line's end
            lines.pop()
        found = decode_lines(lines, _PLAIN) if lines else None
        if found is not None:
            yield range(first, first + len(found)), found
            continue
        for number, line in enumerate(map(str.strip, lines), first):
            if line:
                label = f"{path}, line {number}"
                yield [number], [checked(parse_strict(line, label, first_line=None), dict, label)]


def checked(value: Any, kind: type, label: str) -> Any:
    """`value` if it is of a JSON kind (dict, list, str, int). Raises ListFormatError."""
    if type(value) is kind:
        return value
    raise ListFormatError(f"{label}: expected {_KINDS[kind]}, found {shown(value)}")


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def shown(value: Any) -> str:
    """A JSON value for a message, shortened."""
    return f"{json.dumps(value, ensure_ascii=False, default=str):.60}"


def field(record: dict[str, Any], name: str, kind: type, label: str) -> Any:
    """The field `name` of a record, of a JSON kind; a text must not be blank.

    Raises ListFormatError that names `label` and the field.
    """
    value: Any = record.get(name)
    if type(value) is kind and (kind is not str or str(value).strip()):
        return value
    if name not in record:
        have = ", ".join(map(str, list(record)[:8])) or "none"
        raise ListFormatError(f"{label}: no field {name!r}; it has: {have}")
    checked(value, kind, f"{label}, field {name!r}")
    raise ListFormatError(f"{label}, field {name!r}: is empty")


class Texts:
    """Reads several texts of each of many records of a file.

    names: of the fields, two or more. place: how messages name a record, with `{}` for its number.
    """

    def __init__(self, path: str, *names: str, place: str = "[{}]") -> None:
        self._path, self._place, self._names = path, place, names
        self._get = operator.itemgetter(*names)

    def columns(self, records: Sequence[Any]) -> list[list[str]] | None:
        """The texts of many records, a list for each field; None: look at each of the records."""
        try:
            found = [[record[name] for record in records] for name in self._names]
            return found if all(map(str.strip, itertools.chain(*found))) else None
        except (KeyError, TypeError, IndexError):
            return None

    def every(self, records: list[Any]) -> list[list[str]]:
        """As `columns`. Raises ListFormatError with the record, numbered from 0, and the field."""
        found = self.columns(records)
        return found or [*map(list, zip(*map(self, records, itertools.count())))]

    def __call__(self, record: Any, number: int) -> tuple[str, ...]:
        """The texts as they are, none of them blank. Raises ListFormatError with the field."""
        try:
            found: tuple[str, ...] = self._get(record)
            if all(map(str.strip, found)):
                return found
        except (KeyError, TypeError, IndexError):
            pass
        label = f"{self._path}, {self._place.format(number)}"
        checked(record, dict, label)
        return tuple(field(record, name, str, label) for name in self._names)


def number_field(record: dict[str, Any], name: str, label: str) -> float:
    """A finite number of a record, also as the text of a table's cell. Raises ListFormatError."""
    value = record.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ListFormatError(f"{label}, field {name!r}: expected a number, found {shown(value)}")
    return number


def choice(value: str, allowed: Iterable[str], name: str) -> str:
    """An option's value. Raises ListFormatError for one that is not allowed."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ListFormatError(f"option {name}={value}: give one of {', '.join(allowed)}")
    return value


def one_file(paths: Sequence[str], suffixes: tuple[str, ...], what: str) -> str:
    """The only one of `paths` that ends in one of `suffixes`. Raises ListFormatError."""
    found = [path for path in paths if path.lower().endswith(suffixes)]
    if len(found) != 1:
        ending = " or ".join(suffixes)
        raise ListFormatError(
            f"expected one {ending} file ({what}), got {counted(len(found), 'of them')[0]} "
            f"among {', '.join(paths) or 'no files'}"
        )
    return found[0]


def without_extension(name: str) -> str:
    """A video's name without its extension, if that is one of a video; other dots stay."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and stem and extension.lower() in VIDEO_EXTENSIONS else name


def read_ids(path: str) -> dict[str, int]:
    """The ids of a text file, one a line, with their lines. Raises ListFormatError if one repeats.

    A file that ends in .json holds a list of them; then the numbers count its entries from 1.
    """
    if path.lower().endswith(".json"):
        entries = checked(read_json(path), list, path)
        names = (checked(each, str, f"{path}, [{place}]") for place, each in enumerate(entries))
        found: Iterable[tuple[int, str]] = enumerate(names, 1)
        where = "entry"
    else:
        found, where = read_lines(path), "line"
    seen: dict[str, int] = {}
    for number, name in found:
        once(seen, name, number, f"{path}, {where} {number}")
    if not seen:
        raise ListFormatError(f"{path}: no ids")
    return seen


def all_new(seen: dict[Any, int], names: Sequence[Any], numbers: Iterable[int]) -> bool:
    """Note many names at once; False, and nothing noted: one of them repeats, look at each."""
    if len(set(names)) < len(names) or not seen.keys().isdisjoint(names):
        return False
    seen.update(zip(names, numbers))
    return True


def once(seen: dict[Any, int], name: Any, number: int, label: str) -> None:
    """Note that `name` is in line `number`. Raises ListFormatError if it was in another."""
    if seen.setdefault(name, number) != number:
        raise ListFormatError(f"{label}: {name!r} repeats that of number {seen[name]}")


CAPTION_MODES = ("several", "expanded")


def captioned(
    texts: Mapping[str, Any],
    wanted: Mapping[str, str] | None,
    notes: Counter[str],
    source: str,
    mode: str = "several",
) -> Iterator[dict[str, Any]]:
    """The rows of videos with captions, in the order of the list.

    texts: a caption, or a list of captions, of every video. wanted: the listed videos, each with
    its place for an error; None: all of `texts`. source: the captions' file. mode: `several`, one
    row with all captions of a video, or `expanded`, one row for each caption. Raises
    ListFormatError for a listed video without a caption.
    """
    choice(mode, CAPTION_MODES, "captions")
    if wanted is not None:
        others = len(texts.keys() - wanted.keys())
        if others:
            notes["videos with captions that are not on the list"] += others
    for video in texts if wanted is None else wanted:
        if video not in texts:
            assert wanted is not None
            raise ListFormatError(f"{wanted[video]}: {video!r} has no caption in {source}")
        found = texts[video]
        if isinstance(found, str):
            yield {"video": video, "caption": found}
        elif mode == "several":
            yield {"video": video, "captions": found}
        else:
            yield from ({"video": video, "caption": text} for text in found)


def paragraph(sentences: Iterable[str]) -> str:
    """Sentences joined with a space, in their order, white space around each removed."""
    return " ".join(sentence.strip() for sentence in sentences)
