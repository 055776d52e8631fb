"""Windows cover a video, and are read as the evaluation reads a segment."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svilm_fast.inference.clips import read_clip
from svilm_fast.search import windows as windows_module
from svilm_fast.search.windows import (
    read_timeline,
    read_windows,
    segment_of,
    video_seconds,
    windows_of,
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3.0, [(0.0, 3.0)]),
        (5.0, [(0.0, 5.0)]),
        (6.0, [(0.0, 5.0), (1.0, 6.0)]),
        (10.0, [(0.0, 5.0), (2.5, 7.5), (5.0, 10.0)]),
        (11.0, [(0.0, 5.0), (2.5, 7.5), (5.0, 10.0), (6.0, 11.0)]),
        (0.0, [(0.0, 0.0)]),
    ],
)
def test_windows_of_five_seconds(seconds, expected):
    assert windows_of(seconds, 5.0, 2.5) == expected


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 100), st.floats(1, 60), st.floats(0.1, 1))
def test_windows_cover_the_video_without_gaps(seconds, window, share):
    found = windows_of(seconds, window, share * window)
    assert found[0][0] == 0.0
    assert found[-1][1] == pytest.approx(seconds)
    for (start, end), (later, _) in itertools.pairwise(found):
        assert start < later <= end + 1e-6
    for start, end in found:
        assert 0 <= start <= end <= seconds
        assert end - start == pytest.approx(min(window, seconds), abs=1e-5)


def test_windows_are_read_as_segments_of_the_file(folder, model, monkeypatch):
    path = folder / "long.mp4"
    data = path.read_bytes()
    seconds = video_seconds(read_timeline(data, model.settings))
    assert seconds == pytest.approx(4.0)
    windows = windows_of(seconds, 2.0, 1.0)
    expected = torch.stack(
        [read_clip(path, model.settings, segment_of(each, seconds)) for each in windows]
    )
    assert len({clip.numpy().tobytes() for clip in expected}) == 3
    for call_bytes in (1 << 28, 1):
        monkeypatch.setattr(windows_module, "CALL_BYTES", call_bytes)
        batches = list(read_windows(data, windows, seconds, model.settings))
        assert len(batches) == (1 if call_bytes > 1 else 3)
        assert torch.equal(torch.cat(batches), expected)


def test_a_single_window_is_the_whole_file(folder, model):
    path = folder / "long.mp4"
    (clip,) = read_windows(path.read_bytes(), [(0.0, 4.0)], 4.0, model.settings)
    assert torch.equal(clip[0], read_clip(path, model.settings))
    assert segment_of((0.0, 0.0), 0.0) is None
