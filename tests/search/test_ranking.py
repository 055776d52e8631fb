"""Moments are the most similar windows, of which none repeats another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.search import ranking
from svilm_fast.search.index import IndexedVideo, VideoIndex
from svilm_fast.search.ranking import best_moments, overlap
from svilm_fast.search.windows import windows_of


def make_index(seconds: dict[str, float], rows: torch.Tensor) -> VideoIndex:
    videos = {
        name: IndexedVideo(1, 1, "a", length, windows_of(length, 4.0, 1.0))
        for name, length in seconds.items()
    }
    sizes = [len(video.windows) for video in videos.values()]
    return VideoIndex(Path("v"), videos, dict(zip(videos, rows.split(sizes), strict=True)))


def test_moments_equal_a_search_of_every_pair(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(27, 6, generator=generator), dim=1)
    index = make_index({"a.mp4": 20.0, "b.mp4": 12.0, "c.mp4": 3.0}, rows)
    text = normalize(torch.randn(6, generator=generator), dim=0)
    _, places = index.table()
    left = sorted(range(27), key=lambda row: -float(rows[row] @ text))
    expected = []
    while left:
        best = left.pop(0)
        expected.append(places[best])
        left = [
            row
            for row in left
            if places[row][0] != places[best][0] or overlap(places[row][1], places[best][1]) <= 0.3
        ]
    for tile in (4, 1000):
        monkeypatch.setattr(ranking, "TILE_ROWS", tile)
        found = best_moments(index, text, 100)
        assert [(each.name, (each.start, each.end)) for each in found] == expected
    assert found[0].path == Path("v") / found[0].name
    assert found[0].score == pytest.approx(float((rows @ text).max()))
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert best_moments(index, text, 2) == found[:2]


def test_equal_scores_keep_the_order_of_names_and_times():
    index = make_index({"a.mp4": 4.0, "b.mp4": 4.0}, torch.ones(2, 3))
    found = best_moments(index, torch.ones(3), 5)
    assert [each.name for each in found] == ["a.mp4", "b.mp4"]


def test_an_index_of_broken_files_has_no_moments():
    index = VideoIndex(Path("v"), {"a.mp4": IndexedVideo(1, 1, "a", error="broken")}, {})
    assert best_moments(index, torch.ones(3), 5) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((0, 4), (2, 6), 1 / 3), ((0, 4), (4, 8), 0.0), ((0, 4), (9, 12), 0.0), ((0, 0), (0, 0), 1)],
)
def test_overlap(first, second, expected):
    assert overlap(first, second) == pytest.approx(expected)
    assert overlap(second, first) == pytest.approx(expected)
