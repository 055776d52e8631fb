"""Texts of errors and of other programs, as parts of a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def single_line(text: object, limit: int | None = 300) -> str:
    """`text` without line breaks, cut at `limit` characters; for an empty error its type's name."""
    line = " ".join(str(text).split())
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def suggestion(name: str, known: Iterable[str], *, label: str = "known") -> str:
    """What to write instead of an unknown name: the nearest one, or the list of all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{label}: {', '.join(names)}"


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for names that are not known: "unknown op a, b: choose among c, d"."""
    names = list(known)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"unknown {kind} {', '.join(unknown)}: choose among {', '.join(names)}")
