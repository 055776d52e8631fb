"""The page shows every moment and skipped file, links to the videos, and loads nothing."""

from __future__ import annotations

import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.search.index import update_index
from svilm_fast.search.page import (
    check_page,
    encode_jpeg,
    link_to,
    moment_span,
    write_search_page,
)
from svilm_fast.search.ranking import best_moments
from svilm_fast.search.regions import show_moment


class Elements(HTMLParser):
    """Collects the start tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def page(folder, model, tmp_path):
    index, _ = update_index(folder, model, tmp_path / "index", window=2.0, stride=2.0)
    moments = best_moments(index, model.embed_text("a dog")[0], 3)
    shown = [show_moment(model, moment, ["dog", "<b>ball"]) for moment in moments]
    path = tmp_path / "out" / "found.html"
    write_search_page(path, 'a "dog" & <ball>', shown, index, model.settings, "tiny")
    return path


def test_links_lead_to_the_files_at_the_moments_start(page, folder):
    elements = Elements()
    elements.feed(page.read_text())
    links = [a["href"] for tag, a in elements.found if tag == "a" and "#t=" in a["href"]]
    assert len(links) == 3
    for link in links:
        parts = urlsplit(link)
        assert (page.parent / unquote(parts.path)).resolve().is_file()
        assert re.fullmatch(r"t=\d+\.\d\d", parts.fragment)
    assert any("%231.mp4#t=0.00" in link for link in links)


def test_tabs_of_radio_buttons_show_one_panel_each(page):
    elements = Elements()
    elements.feed(page.read_text())
    buttons = [a for tag, a in elements.found if tag == "input"]
    labels = {a["for"] for tag, a in elements.found if tag == "label"}
    panels = [a for tag, a in elements.found if a.get("class") == "panel"]
    assert len(buttons) == len(panels) == 3 * 4  # all nouns, each of two nouns, frames
    assert {button["id"] for button in buttons} == labels
    assert len({button["name"] for button in buttons}) == 3
    assert sum("checked" in button for button in buttons) == 3
    assert page.read_text().count("nth-of-type(4):checked") == 1
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_escapes_texts(page):
    text = page.read_text()
    elements = Elements()
    elements.feed(text)
    assert "<b>ball" not in text
    assert "<ball>" not in text
    assert "&lt;b&gt;ball" in text
    images = [a for tag, a in elements.found if tag == "img"]
    assert len(images) == 3 * 4 * 4
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in images)
    assert not [tag for tag, _ in elements.found if tag in ("script", "link", "iframe")]


def test_skipped_files_are_listed(page):
    text = page.read_text()
    for name in ("broken.mp4", "cut.mp4"):
        assert re.search(rf"<tr><td>{name}</td><td>.+</td></tr>", text)


def test_names_that_are_no_text_are_linked_and_listed(folder, model, tmp_path):
    for name, source in ((b"caf\xe9.mp4", "long.mp4"), (b"bad\xe9.mp4", "broken.mp4")):
        os.rename(folder / source, os.fsencode(folder) + b"/" + name)
    index, _ = update_index(folder, model, tmp_path / "index")
    moments = best_moments(index, model.embed_text("a dog")[0], 3)
    page = tmp_path / "found.html"
    shown = [show_moment(model, moment, []) for moment in moments]
    write_search_page(page, "a dog", shown, index, model.settings, "tiny")
    text = page.read_text()
    assert 'href="videos/caf%E9.mp4#t=0.00"' in text
    assert "<td>bad\\udce9.mp4</td>" in text


def test_a_moment_that_cannot_be_read_says_why(folder, model, tmp_path):
    index, _ = update_index(folder, model, tmp_path / "index")
    moments = best_moments(index, model.embed_text("a dog")[0], 3)
    (folder / "long.mp4").write_text("no video")
    shown = [show_moment(model, moment, ["dog"]) for moment in moments]
    problems = {each.moment.name: each.problem for each in shown}
    assert problems["sub/short #1.mp4"] == ""
    assert problems["long.mp4"].startswith("no regions: not a video file")
    write_search_page(tmp_path / "found.html", "a dog", shown, index, model.settings, "tiny")
    assert "<p>no frames: not a video file" in (tmp_path / "found.html").read_text()


def test_only_a_page_of_search_is_replaced(page, tmp_path):
    check_page(page)
    check_page(tmp_path / "absent.html")
    other = tmp_path / "mine.html"
    other.write_text("<html>")
    with pytest.raises(UserError, match="choose another name"):
        check_page(other)
    with pytest.raises(UserError, match="choose another name"):
        check_page(tmp_path)


def test_times_and_links():
    assert moment_span(62.46, 67.5) == "1:02.5 to 1:07.5"
    assert moment_span(59.96, 3600) == "1:00.0 to 60:00.0"
    assert moment_span(0, 0) == "whole video"
    assert link_to(Path("/a/b/p.html"), Path("/a/v/x:y z.mp4"), 2.5) == "../v/x%3Ay%20z.mp4#t=2.50"


@pytest.mark.parametrize("size", [(33, 47), (64, 64)])
def test_pictures_are_those_frames(size):
    rows = np.linspace(0, 255, size[0])[:, None, None]
    frame = np.broadcast_to(rows, (*size, 3)).astype(np.uint8)
    with av.open(io.BytesIO(encode_jpeg(frame)), format="jpeg_pipe") as container:
        (decoded,) = container.decode(video=0)
        assert np.abs(decoded.to_ndarray(format="rgb24").astype(int) - frame).max() < 12
