"""Parts of messages: quoted texts of errors and programs, and suggestions for names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def single_line(text: object, limit: int | None = 300) -> str:
    """Join the lines of `text` and cut at `limit` characters; an empty error gives its type."""
    line = " ".join(str(text).split())
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def suggestion(name: str, known: Iterable[str], *, label: str = "known") -> str:
    """A hint for an unknown name: the nearest known name, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{label}: {', '.join(names)}"


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for unknown names: "unknown op a, b: choose among c, d"."""
    names = list(known)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"unknown {kind} {', '.join(unknown)}: choose among {', '.join(names)}")
