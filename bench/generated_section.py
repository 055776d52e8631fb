"""The generated section of a page: the text that a command writes between two marks."""

from __future__ import annotations

from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """The comments around the section of that name."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def read_section(page: Path, name: str) -> str:
    """The text between the page's marks; raises ValueError if a mark is missing."""
    return _parts(page, name)[1]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the text between the page's marks; raises ValueError if a mark is missing."""
    before, _, after = _parts(page, name)
    start, end = marks(name)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    start, end = marks(name)
    before, found, rest = page.read_text().partition(start)
    section, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no section {name!r}: put {start} and {end} at its place")
    return before, section.strip("\n"), after
