"""Kinetics-400, -600 and -700: tables of YouTube ids, and lists of files with class numbers."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    blocks_of,
    checked,
    choice,
    number_field,
    once,
    read_columns,
    read_json,
    read_lines,
    shown,
)

_IDS = re.compile(r"[\w-]{11}(?:\n[\w-]{11})*", re.ASCII)  # one a line
_LONGEST = 999_999  # seconds that six digits hold
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(paths: Sequence[str], notes: Notes, *, split: str = "all", extension: str = "mp4") -> Rows:
    """Read one table: CSV with label, youtube_id, time_start and time_end; also split and is_cc.

    The video of a row is `<youtube_id>_<time_start>_<time_end>.mp4`, times with six digits; a clip
    holds only that part. Quotes around labels are removed, and `_` is read as a space in a label
    without spaces.

    split: `all`, or the rows of `train`, `val` or `test`. extension: of the files.
    """
    if len(paths) != 1:
        raise ListFormatError(f"expected one table, got {', '.join(paths) or 'no files'}")
    choice(split, ("all", "train", "val", "test"), "split")
    path = paths[0]
    seen: dict[str, tuple[int, str | None]] = {}  # lines and labels of clips
    known: set[str] = set()  # the same, with what `waiting` holds
    waiting: list[tuple[list[str], tuple[int, ...], list[str | None]]] = []
    labels: dict[str, str] = {}
    ends: dict[tuple[str, str], str] = {}
    wanted = {"val": ("val", "validate", "validation")}.get(split, (split,))
    header, rows = read_columns(path, _COLUMNS if split == "all" else (*_COLUMNS, "split"))
    cells_of = operator.itemgetter(*map(header.index, _COLUMNS))
    of_split = None if split == "all" else header.index("split")
    for lines, every in blocks_of(rows):
        given, ids, starts, stops = zip(*map(cells_of, every))
        names, tails = list(map(labels.get, given)), list(map(ends.get, zip(starts, stops)))
        # New clips with known labels and times need no look at single rows.
        if of_split is None and _are_plain(names, tails, ids):
            files, before = list(map(operator.add, ids, tails)), len(known)
            known.update(files)
            if len(known) - before == len(files):
                waiting.append((files, lines, names))
                for file, name in zip(files, names):
                    yield {"video": file, "label": name}
                continue
        for files, their_lines, names in waiting:
            seen.update(zip(files, zip(their_lines, names)))
        waiting.clear()
        for line, cells in zip(lines, every):
            if of_split is not None and cells[of_split].strip() not in wanted:
                notes["rows of other splits"] += 1
                continue
            label, identity, *times = cells_of(cells)
            name = labels.get(label)
            if name is None:
                name = labels[label] = _label(label, f"{path}, line {line}")
            video = identity.strip()
            if not _are_ids([video]):
                raise ListFormatError(
                    f"{path}, line {line}, field 'youtube_id': expected eleven letters, digits, "
                    f"'-' and '_', found {shown(identity)}"
                )
            start, stop = times
            end = ends.get((start, stop))
            if end is None:
                row = dict(zip(header, cells))
                first, last = _times(row, f"{path}, line {line}")
                end = ends[start, stop] = f"_{first:06d}_{last:06d}.{extension}"
            file = video + end
            known.add(file)
            earlier = seen.setdefault(file, (line, name))
            if earlier[0] != line:
                if earlier[1] != name:
                    raise ListFormatError(
                        f"{path}, line {line}, field 'label': {name!r}, and {earlier[1]!r} for "
                        f"the same clip in line {earlier[0]}"
                    )
                notes["rows left out that repeat an earlier one"] += 1
                continue
            yield {"video": file, "label": name}
    notes["classes"] = len(set(labels.values()))


def _are_plain(
    names: Sequence[str | None], tails: Sequence[str | None], ids: Sequence[str]
) -> bool:
    """Whether labels and times of all rows are known already, and the ids are good."""
    return None not in names and None not in tails and _are_ids(ids)


def _are_ids(ids: Sequence[str]) -> bool:
    """Whether all are ids of YouTube."""
    text = "\n".join(ids)
    return _IDS.fullmatch(text) is not None and text.count("\n") == len(ids) - 1


def read_index(paths: Sequence[str], notes: Notes) -> Rows:
    """Read one list of `path number` and, if given, the names of the classes.

    Lists of the SlowFast and VideoMAE kind: a path and the class, numbered from 0, separated by a
    space or a comma. Names: a .json file {name: number}, or a .txt file with one name a line in the
    order of the numbers. Without names the labels are numbers. The order of Kinetics is that of the
    sorted labels; no list of names is packaged, because wrong ones have circulated.
    """
    lists = [path for path in paths if not _is_names(path)]
    named = [path for path in paths if _is_names(path)]
    if len(lists) != 1 or len(named) > 1:
        raise ListFormatError(
            "expected one list and at most one .json file or classes.txt of names, got "
            f"{', '.join(paths) or 'no files'}"
        )
    names = _names(named[0]) if named else None
    by_folder = {_folded(name): name for name in names or ()}
    seen: dict[str, int] = {}
    used: set[int] = set()
    for line, text in read_lines(lists[0]):
        label = f"{lists[0]}, line {line}"
        video, number = _cut(text)
        if not video or not number.isdecimal():
            raise ListFormatError(
                f"{label}, field 'label': expected a path and the number of a class, found "
                f"{shown(text)}"
            )
        once(seen, video, line, f"{label}, field 'path'")
        used.add(int(number))
        if names is None:
            yield {"video": video, "label": int(number)}
            continue
        if int(number) >= len(names):
            raise ListFormatError(
                f"{label}, field 'label': {number}, and {named[0]} has {len(names)} classes, "
                "numbered from 0"
            )
        name = names[int(number)]
        folder = by_folder.get(_folded(os.path.basename(os.path.dirname(video))), name)
        if folder != name:
            raise ListFormatError(
                f"{label}, field 'label': {number} is {name!r} in {named[0]}, and the folder says "
                f"{folder!r}; are the classes numbered from 1?"
            )
        yield {"video": video, "label": name}
    notes["classes"] = len(used)
    if used and 0 not in used and max(used) == len(used):
        notes["as the smallest class number: the list may count from 1"] = min(used)


def _label(given: str, label: str) -> str:
    name = given.strip().strip('"').strip()
    if not name:
        raise ListFormatError(f"{label}, field 'label': is empty")
    return name if " " in name else name.replace("_", " ")


def _times(row: dict[str, str], label: str) -> tuple[int, int]:
    """The times in whole seconds; also of texts like `10.0`. Raises ListFormatError."""
    found = []
    for name in ("time_start", "time_end"):
        value = number_field(row, name, label)
        if value != int(value) or not 0 <= value <= _LONGEST:
            raise ListFormatError(
                f"{label}, field {name!r}: expected whole seconds of at most six digits, found "
                f"{shown(row[name])}"
            )
        found.append(int(value))
    if found[0] >= found[1]:
        raise ListFormatError(
            f"{label}, field 'time_end': {found[1]} is not after time_start, {found[0]}"
        )
    return found[0], found[1]


def _is_names(path: str) -> bool:
    file = os.path.basename(path).lower()
    return file.endswith(".json") or (file.endswith(".txt") and "class" in file)


def _folded(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _cut(text: str) -> tuple[str, str]:
    """A line's path and what follows its last comma, tab or space."""
    for separator in (",", "\t", " "):
        video, found, number = text.rpartition(separator)
        if found and number.strip().isdecimal():
            return video.strip(), number.strip()
    return text, ""


def _names(path: str) -> list[str]:
    """The names of the classes in the order of their numbers. Raises ListFormatError."""
    if not path.lower().endswith(".json"):
        seen: dict[str, int] = {}
        for line, name in read_lines(path):
            once(seen, name, line, f"{path}, line {line}")
        return list(seen)
    by_number: dict[int, str] = {}
    for name, number in checked(read_json(path), dict, path).items():
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        place = checked(number, int, f"{path}, {name!r}")
        if place in by_number:
            raise ListFormatError(f"{path}, {name!r}: {place} is {by_number[place]!r} already")
        by_number[place] = name.strip().strip('"')
    if sorted(by_number) != list(range(len(by_number))):
        raise ListFormatError(f"{path}: the classes are not numbered from 0 without gaps")
    return [by_number[place] for place in range(len(by_number))]
