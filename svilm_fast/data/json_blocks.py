"""Many JSON objects decoded at once, where none of them needs a closer look."""

from __future__ import annotations

import json
import re
from typing import Any

_KEY = re.compile(r'"[ \t\n\r]*:')
_MARK = 1_604_661_907  # any number; it stands between lines


def no_key_twice(text: str, value: Any) -> bool:
    """Whether no object of a JSON text names a key twice; False: it has to be looked at.

    value: the text as read by a decoder that keeps the last of equal keys. Outside texts a colon
    stands behind a key and nowhere else, so there are at least as many colons as keys are written,
    and at least as many as are read.
    """
    keys = _keys(value)
    if text.count(":") == keys:
        return True
    written = len(_KEY.findall(text))
    return written == keys or written == _keys(value, deep=True)


def _keys(value: Any, *, deep: bool = False) -> int:
    """The number of keys in a JSON value; not deep: without those inside of lists of lists and of
    records, which takes far less time."""
    count, rest = 0, [value]
    while rest:
        each = rest.pop()
        if type(each) is dict:
            count += len(each)
            rest.extend(each.values())
        elif type(each) is list and deep:
            rest.extend(each)
        elif type(each) is list and set(map(type, each)) == {dict}:
            count += sum(map(len, each))
    return count


def decode_lines(lines: list[str], decoder: json.JSONDecoder) -> list[dict[str, Any]] | None:
    """The objects of lines that hold one each, no key twice; None: look at them one by one.

    A mark between the lines shows that none of them ends within another: all marks stand in the
    outermost list, and none is written in a line.
    """
    joined = f",{_MARK},".join(lines)
    if joined.count(str(_MARK)) != len(lines) - 1:
        return None
    text = f"[{joined}]"
    try:
        found = decoder.decode(text)
    except (ValueError, RecursionError):
        return None
    records, marks = found[::2], found[1::2]
    if (
        len(records) != len(lines)
        or set(map(type, records)) != {dict}
        or not {int}.issuperset(map(type, marks))
        or marks.count(_MARK) < len(marks)
    ):
        return None
    return records if no_key_twice(text, records) else None
