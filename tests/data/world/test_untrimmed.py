"""Untrimmed videos of the world: their truth, and that settings alone determine them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.formats.activitynet import read_annotations
from svilm_fast.data.world.untrimmed import UntrimmedConfig, render_untrimmed, untrimmed_video

SMALL = UntrimmedConfig(train=2, val=1, test=1, size=32, seconds=(8.0, 12.0))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("untrimmed") / "world"
    render_untrimmed(out, SMALL, workers=1, progress=False)
    return out


def test_files(rendered):
    assert sorted(path.name for path in (rendered / "videos").iterdir()) == [
        "test-00000.mp4",
        "train-00000.mp4",
        "train-00001.mp4",
        "val-00000.mp4",
    ]
    assert (rendered / "classes.txt").read_text().splitlines() == list(SMALL.actions)
    known = read_annotations(rendered / "annotations.json")  # segments lie inside the videos
    assert [len(known.subset(name)) for name in ("training", "validation", "testing")] == [2, 1, 1]
    for name, video in known.videos.items():
        clip = decode_clip((rendered / "videos" / f"{name}.mp4").read_bytes(), every_frame)
        assert clip.total / SMALL.fps == video.duration
        assert video.segments
        assert all(a.end <= b.start for a, b in zip(video.segments, video.segments[1:]))
        assert {segment.label for segment in video.segments} <= set(SMALL.actions)


def test_nothing_moves_but_in_the_annotated_segments():
    for number in range(4):
        frames, segments = untrimmed_video(SMALL, "train", number)
        moved = (np.diff(frames.astype(int), axis=0) != 0).reshape(len(frames) - 1, -1).any(1)
        inside = np.zeros(len(frames) - 1, bool)
        for start, end, _ in segments:
            inside[round(start * SMALL.fps) : round(end * SMALL.fps)] = True
        outside = np.flatnonzero(moved & ~inside)
        # An object appears or vanishes at once between two parts; nothing lasts two frames.
        assert (np.diff(outside) > 1).all()
        assert moved[inside].mean() > 0.5


def test_settings_alone_determine_the_videos(rendered, tmp_path):
    first, segments = untrimmed_video(SMALL, "val", 0)
    again, same = untrimmed_video(SMALL, "val", 0)
    assert (first == again).all()
    assert segments == same
    other, _ = untrimmed_video(SMALL.model_copy(update={"seed": 1}), "val", 0)
    assert other.shape != first.shape or (other != first).any()
    render_untrimmed(tmp_path / "again", SMALL, workers=1, progress=False)
    for path in sorted(rendered.rglob("*")):
        if path.is_file():
            assert (
                tmp_path / "again" / path.relative_to(rendered)
            ).read_bytes() == path.read_bytes()


def test_an_equal_world_is_kept_and_another_is_refused(rendered, tmp_path):
    assert render_untrimmed(rendered, SMALL, workers=1, progress=False).reused
    with pytest.raises(FileExistsError, match="another untrimmed world"):
        render_untrimmed(rendered, SMALL.model_copy(update={"seed": 3}), workers=1, progress=False)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="no untrimmed world"):
        render_untrimmed(tmp_path, SMALL, workers=1, progress=False)
    # A rendering that was stopped is done again.
    manifest = json.loads((rendered / "manifest.json").read_text())
    half = tmp_path / "half"
    half.mkdir()
    (half / "manifest.json").write_text(json.dumps(manifest | {"sha256": None}))
    assert not render_untrimmed(half, SMALL, workers=1, progress=False).reused


@pytest.mark.parametrize(
    "change",
    [{"size": 33}, {"seconds": (5, 4)}, {"actions": ("fly",)}, {"action_seconds": (0.5, 1)}],
)
def test_settings_that_are_refused(change):
    with pytest.raises(ValueError):
        UntrimmedConfig(**change)
