"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from svilm_fast.core.text import counted


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 videos"), (1, "1 video"), (2, "2 videos"), (12345, "12,345 videos"), (-1, "-1 videos")],
)
def test_one_is_singular_and_all_else_plural(count: int, text: str) -> None:
    assert counted(count, "video") == text


def test_an_irregular_plural_is_given() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"
