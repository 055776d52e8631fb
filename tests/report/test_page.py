"""report.html holds everything it shows, and shows what it was given."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.evaluation.missing import MissingVideo
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.report.curves import read_metrics
from svilm_fast.report.page import HeadlineTile, PageContent, Picture, Section, write_page
from svilm_fast.report.sections import (
    curves_section,
    headline,
    retrieval_sections,
)

OBJECTIVES = ObjectivesConfig()
NOTHING: dict[str, Any] = {
    "series": {},
    "config": {},
    "settings": {},
    "environment": {},
    "extra_facts": {},
}


class Addresses(HTMLParser):
    """Collects everything a browser would follow or load, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loads = ("src", "srcset", "href", "data", "action", "poster", "background")
        self.addresses += [value or "" for name, value in attributes if name in loads]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def report(make_result, metrics_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    series, result = read_metrics(metrics_path), make_result()
    sections = [*retrieval_sections(result, 2), curves_section(series, OBJECTIVES.metrics())]
    return write_page(
        tmp_path_factory.mktemp("out"),
        PageContent(sections, headline(result, series)),
        name="night <b>run</b> & co",
        series=series,
        config={"model": {"preset": "tiny"}, "run": {"seed": 3}},
        settings={},
        environment={"device": "cpu"},
        extra_facts={},
    )


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return report.read_text()


def test_the_page_loads_nothing(page: str) -> None:
    found = Addresses(page)
    assert found.addresses
    anchors = {f"#{name}" for name in re.findall(r'id="([^"]+)"', page)}
    for address in found.addresses:
        assert address.startswith("data:image/png;base64,") or address in anchors, address[:60]
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def test_every_picture_is_there_in_both_themes(page: str) -> None:
    light = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    dark = re.findall(
        r'<source media="[^"]*dark[^"]*" srcset="data:image/png;base64,([^"]+)"', page
    )
    assert len(light) == len(dark) == 4
    for (first, alt), second in zip(light, dark):
        assert base64.b64decode(first).startswith(b"\x89PNG")
        assert base64.b64decode(second).startswith(b"\x89PNG")
        assert first != second
        assert len(alt) > 20


def test_names_are_escaped(page: str) -> None:
    assert "night &lt;b&gt;run&lt;/b&gt; &amp; co" in page
    assert "<b>run</b>" not in page


def test_table_and_facts_are_on_the_page(page: str) -> None:
    words = " ".join(" ".join(Addresses(page).words).split())
    for text in (
        "text to video 100.0 (100.0 to 100.0)",
        "colour sets only 12.5 62.5 100.0",
        "chance (99.9 %) 12.5",
        "Clearest hits",
        "median rank",
        "preset tiny",
        "seed 3",
        "device cpu",
        "clips per second, all ranks 100.5",
        "The whole configuration model: preset: tiny",
    ):
        assert text in words, text


def test_pictures_lie_beside_the_page(report: Path) -> None:
    names = sorted(path.name for path in (report.parent / "pictures").iterdir())
    assert names == ["curves.png", "queries_best.png", "queries_worst.png", "recall.png"]


def test_a_page_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path, PageContent([], []), name="empty", **NOTHING).read_text()
    found = Addresses(text)
    assert found.tags.count("h1") == 1
    assert "section" not in found.tags
    assert found.addresses == []


def test_missing_videos_are_said_on_the_page(make_result, tmp_path: Path) -> None:
    result = make_result()
    result.missing = {"gone": MissingVideo("cut short")}
    content = PageContent(retrieval_sections(result, 1), [])
    assert (
        "1 video missing (gone)" in write_page(tmp_path, content, name="x", **NOTHING).read_text()
    )


def test_anchors_are_plain() -> None:
    section = Section("Groups & nouns!", "", [("", Picture("x", b"", b"", "alt"))])
    assert section.anchor == "groups-nouns"


def test_texts_cannot_reorder_the_page(tmp_path: Path) -> None:
    section = Section("a\u202eb", "\x1b[2J\u2066x")
    content = PageContent([section], [HeadlineTile("1\u202e", "é 男")])
    shown = write_page(tmp_path, content, name="\u202egpj", **NOTHING).read_text()
    assert not set(shown) & set("\u202e\u2066\x1b")
    for text in ("\\u202egpj", "1\\u202e", "é 男", "a\\u202eb", "\\x1b[2J\\u2066x"):
        assert text in shown


def test_a_phone_shows_the_page_without_scrolling_sideways(page: str) -> None:
    """What is wide lies in a box that scrolls, and no column is wider than a narrow page."""
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    body = page[page.index("<main>") :]
    for tag in ("table class", "picture>", "pre>"):
        for start in (found.start() for found in re.finditer(f"<{tag}", body)):
            box = '<div class="scroll' if tag != "pre>" else "<details>"
            assert box in body[start - 250 : start], tag
    style = page[page.index("<style>") : page.index("</style>")]
    assert re.search(r"\.scroll {[^}]*overflow-x: auto", style)
    assert re.search(r"\bimg {[^}]*width: 100%; height: auto", style)
    for columns in re.findall(r"minmax\(([^,]+?(?:, 100%\))?),", style):
        assert columns.startswith("min("), columns
