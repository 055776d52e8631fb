"""Numbers with nouns, for messages and pages."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 video", "2 videos", "1,024 entries" (plural: if it is not -s).

    >>> counted(1, "video"), counted(0, "video"), counted(12345, "entry", "entries")
    ('1 video', '0 videos', '12,345 entries')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
