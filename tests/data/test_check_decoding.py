"""`svilm data check-decoding`: counts every video, and a difference is an error."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.data import check_decoding
from svilm_fast.data.decode import decode_clip


@pytest.fixture
def folder(tmp_path, make_video, make_ramp):
    place = tmp_path / "clips" / "inside"
    place.mkdir(parents=True)
    (place / "good.mp4").write_bytes(make_video(make_ramp(24), g="6"))
    (place.parent / "broken.MP4").write_bytes(b"nothing")
    (place.parent / "notes.txt").write_text("no video")
    return place.parent


def test_every_video_is_counted_and_errors_are_equal(folder):
    result = CliRunner().invoke(app, ["data", "check-decoding", str(folder)])
    assert result.exit_code == 0, result.output
    flat = " ".join(result.output.split())
    assert "2 videos: 1 decoded by groups, 0 from the first frame, 1 with errors" in flat
    assert "undecodable" in flat
    assert "h264" in result.output


@pytest.fixture
def in_this_process(monkeypatch):
    """Decodes here: starting a decoding process takes seconds."""
    monkeypatch.setattr(check_decoding, "decode_limited", decode_clip)


@pytest.mark.usefixtures("in_this_process")
def test_shards_are_read_too(make_shards):
    found = check_decoding.check_sources([str(make_shards(3))], draws=1)
    assert [(each.by_groups, each.differences) for each in found] == [(3, [])] * 3


def test_a_difference_ends_with_1(folder, monkeypatch):
    # As a fault in decoding by groups would: other pixels.
    def wrong(data, choice, **settings):
        clip = decode_clip(data, choice, **settings)
        if not isinstance(choice, check_decoding.WithoutGroups):
            clip.frames = clip.frames ^ 1
        return clip

    monkeypatch.setattr(check_decoding, "decode_limited", wrong)
    result = CliRunner().invoke(app, ["data", "check-decoding", str(folder)])
    assert result.exit_code == 1, result.output
    assert "1 with differences" in " ".join(result.output.split())
