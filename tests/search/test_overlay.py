"""The overlay plays the moments one after another, as long as they last, with a bar below."""

from __future__ import annotations

import av
import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.search import overlay
from svilm_fast.search.overlay import BAR, HEIGHT, WIDTH, check_overlay, write_overlay
from svilm_fast.search.ranking import Moment
from svilm_fast.search.regions import show_moment


@pytest.fixture
def shown(folder, model):
    moment = Moment(folder / "long.mp4", "long.mp4", 0.0, 1.2, 0.5, 4.0)
    short = Moment(folder / "sub" / "short #1.mp4", "sub/short #1.mp4", 0.0, 1.0, 0.4, 1.0)
    return [show_moment(model, moment, ["dog", "ball"]), show_moment(model, short, [])]


def frames_in(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_all_moments_with_a_bar(shown, model, folder, tmp_path, monkeypatch):
    path = tmp_path / "found.mp4"
    write_overlay(path, shown, model.settings)
    frames = frames_in(path)
    assert frames.shape == (30 + 25, HEIGHT + BAR, WIDTH, 3)
    # 40 x 64 pixels fill the height; the sides are black.
    assert (frames[:, :HEIGHT, :16] < 20).all()
    assert frames[:, :HEIGHT, 60:580].mean() > 20
    assert frames[:, HEIGHT:].std() > 3
    assert np.abs(frames[0, HEIGHT:].astype(int) - frames[-1, HEIGHT:]).max() > 50
    check_overlay(path, folder)
    monkeypatch.setattr(overlay, "MOST_FRAMES", 5)
    write_overlay(path, shown, model.settings)
    assert len(frames_in(path)) == 55
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["found.mp4"]


def test_other_files_stay(folder, tmp_path):
    with pytest.raises(UserError, match="choose another name"):
        check_overlay(folder / "long.mp4", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="choose another name"):
        check_overlay(tmp_path, folder)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match="choose another name"):
        check_overlay(tmp_path / "empty.mp4", folder)
    check_overlay(tmp_path / "absent.mp4", folder)


def test_an_overlay_that_would_be_searched_is_refused(folder):
    for name in ("found.mp4", "sub/found.mp4"):
        with pytest.raises(UserError, match="the next search would find it"):
            check_overlay(folder / name, folder)


def test_a_video_that_cannot_be_read_is_left_out_and_named(shown, model, tmp_path, folder):
    (folder / "sub" / "short #1.mp4").write_text("no video")
    left_out = write_overlay(tmp_path / "found.mp4", shown, model.settings)
    assert left_out.keys() == {"sub/short #1.mp4"}
    assert len(frames_in(tmp_path / "found.mp4")) == 30
    (folder / "long.mp4").unlink()
    with pytest.raises(UserError, match=r"no moment can be read: long\.mp4: .*No such file"):
        write_overlay(tmp_path / "none.mp4", shown, model.settings)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["found.mp4"]
