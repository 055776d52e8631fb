"""Brace expansion of shard paths, as WebDataset writes them: `s-{000000..000012}.tar`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from svilm_fast.data.errors import DataError

_MOST = 1_000_000  # paths; a mistyped range would fill the memory
_MOST_BRACES = 32  # pairs of them
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand(path: str) -> list[str]:
    """The paths that `{a..b}` (both ends included, zeros kept) and `{x,y}` stand for, in order,
    each once.

    Braces that hold neither a range nor a comma stay as they are. Raises DataError for more than a
    million paths, equal ones counted, and for more than 32 pairs of braces.
    """
    if path.count("{") > _MOST_BRACES:
        raise DataError(f"{path!r:.80} has more than {_MOST_BRACES} pairs of braces: use a list")
    paths: dict[str, None] = {}
    for number, expanded in enumerate(_expanded(path)):
        if number == _MOST:
            raise _too_many(path)
        paths[expanded] = None
    return list(paths)


def _too_many(path: str) -> DataError:
    return DataError(f"{path!r:.80} stands for more than {_MOST} paths: shorten its ranges")


def _expanded(path: str, start: int = 0) -> Iterator[str]:
    for match in _INNERMOST.finditer(path, start):
        choices = _choices(match.group(1))
        if choices is not None:
            before, after = path[: match.start()], path[match.end() :]
            for choice in choices:
                yield from _expanded(before + choice + after, _resume(before))
            return
    yield path


def _resume(before: str) -> int:
    # An open brace to the left may only now be an innermost one: `{a,b{1,2}}`.
    return before.find("{") if "{" in before else len(before)


def _choices(inside: str) -> Iterator[str] | list[str] | None:
    """What one pair of braces stands for; None where it is none of ours."""
    found = _RANGE.fullmatch(inside)
    if found is None:
        return inside.split(",") if "," in inside else None
    first, last = int(found[1]), int(found[2])
    if abs(last - first) >= _MOST:
        raise _too_many("{" + inside + "}")
    width = max(map(len, found.groups())) if "0" in (found[1][0], found[2][0]) else 0
    step = 1 if first <= last else -1
    return (f"{number:0{width}d}" for number in range(first, last + step, step))
