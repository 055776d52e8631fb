"""Files that the docs name exist; docs/one-step.md names each once and stays short."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("**/*.md"),
    *(ROOT / "kernels").glob("*/README.md"),
    *(ROOT / "svilm_fast" / "data").glob("**/README.md"),
]
FOLDERS = "svilm_fast|kernels|train|bench|configs|tests|docs"
STEP = ROOT / "docs" / "one-step.md"


def named_files(text: str) -> list[str]:
    """Paths in backticks, relative to the top of the project, such as `train/run/loop.py`."""
    return re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml|csv|json|sh))`", text)


def test_the_pages_are_found() -> None:
    assert {"README.md", "one-step.md", "architecture.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    linked = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if ":" not in link]
    missing = [link for link in linked if not (page.parent / link).exists()]
    # Gates write files that a checkout does not contain.
    written = ("bench/results/",)
    missing += [
        name
        for name in named_files(text)
        if not (ROOT / name).exists() and not name.startswith(written)
    ]
    assert missing == []


def test_one_step_names_each_file_once_in_at_most_80_lines() -> None:
    text = STEP.read_text()
    counts = Counter(named_files(text))
    assert len(counts) > 30
    assert [name for name, count in counts.items() if count > 1] == []
    assert len(text.splitlines()) <= 80
