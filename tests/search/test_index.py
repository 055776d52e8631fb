"""The index reads only what is new or changed, lists what is broken, and survives a stop."""

from __future__ import annotations

import os

import pytest
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.search import index as index_module
from svilm_fast.search.index import IndexSettings, default_index_path, update_index
from svilm_fast.search.windows import read_windows
from tests.search.conftest import video


@pytest.fixture
def update(folder, model, tmp_path):
    def run(**options):
        options = {"file": tmp_path / "index", "window": 2.0, "stride": 1.0} | options
        return update_index(folder, model, **options)

    return run


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The sizes of the files of which windows were read."""
    sizes: list[int] = []

    def counted(data, *arguments):
        sizes.append(len(data))
        return read_windows(data, *arguments)

    monkeypatch.setattr(index_module, "read_windows", counted)
    return sizes


def counts(changes) -> tuple[int, int, int]:
    return changes.added, changes.unchanged, changes.removed


def test_only_new_and_changed_videos_are_read(folder, update, read, model):
    index, changes = update()
    assert counts(changes) == (4, 0, 0)
    table, places = index.table()
    assert [name for name, _ in places] == ["long.mp4"] * 3 + ["sub/short #1.mp4"]
    assert [window for _, window in places[:3]] == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    assert torch.equal(table[3:], model.embed_video(folder / "sub" / "short #1.mp4"))
    assert set(index.skipped) == {"broken.mp4", "cut.mp4"}
    assert "not a video file" in index.skipped["broken.mp4"]
    assert "truncated" in index.skipped["cut.mp4"]

    read.clear()
    again, changes = update()
    assert counts(changes) == (0, 4, 0)
    assert not read
    assert torch.equal(again.table()[0], table)
    assert again.skipped == index.skipped

    os.utime(folder / "long.mp4", ns=(1, 1))  # the same content at another time
    (folder / "broken.mp4").write_bytes(video(1, 5))
    (folder / "new.mp4").write_bytes(video(1, 6))
    (folder / "sub" / "short #1.mp4").unlink()
    later, changes = update()
    assert counts(changes) == (2, 2, 1)
    assert len(read) == 2
    assert set(later.skipped) == {"cut.mp4"}
    assert torch.equal(later.rows["long.mp4"], index.rows["long.mp4"])
    assert counts(update()[1]) == (0, 4, 0)
    assert counts(update(rebuild=True)[1]) == (4, 0, 0)


def test_stopped_work_continues(folder, update, read, monkeypatch, model):
    calls = []

    def stop(name, done, total):
        calls.append(name)
        if name.startswith("sub"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(progress=stop)
    read.clear()
    _, changes = update()
    assert counts(changes) == (1, 3, 0)
    assert len(read) == 1
    # An update that is stopped early keeps what an earlier one knew of the later files.
    with pytest.raises(KeyboardInterrupt):
        update(progress=lambda name, done, total: (_ for _ in ()).throw(KeyboardInterrupt))
    assert counts(update()[1]) == (0, 4, 0)


def test_files_of_something_else_are_not_replaced(folder, update, tmp_path):
    (tmp_path / "index").write_text("mine")
    with pytest.raises(UserError, match="is not an index of `svilm search`"):
        update()
    assert (tmp_path / "index").read_text() == "mine"
    (tmp_path / "index").unlink()
    update()
    with pytest.raises(UserError, match="another folder, model, window or stride"):
        update(window=3.0)


def test_a_crash_of_the_decoder_is_tried_again(folder, update, monkeypatch):
    def crash(data, *arguments):
        raise index_module.CrashedDecoderError("the process died")

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "read_windows", crash)
        index, _ = update()
        assert index.skipped["long.mp4"] == "the process died"
    index, changes = update()
    assert counts(changes) == (2, 2, 0)
    assert "long.mp4" not in index.skipped


def test_a_file_that_cannot_be_read_is_listed(folder, update, monkeypatch, model):
    limits = model.settings.reading.limits
    size = (folder / "long.mp4").stat().st_size
    monkeypatch.setattr(limits, "video_bytes", size - 1)
    index, _ = update()
    assert index.skipped["long.mp4"] == f"larger than {size - 1} bytes"


def test_folders_without_videos(tmp_path, model):
    with pytest.raises(UserError, match="is not a folder"):
        update_index(tmp_path / "absent", model)
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(UserError, match="holds no video files"):
        update_index(tmp_path, model)


def test_each_folder_and_setting_has_a_file_in_the_cache(folder, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {
        default_index_path(place, IndexSettings(name, window, 1.0))
        for place in (folder, tmp_path)
        for name in ("a", "b")
        for window in (1.0, 2.0)
    }
    assert len(files) == 8
    update_index(folder, model)
    assert len(list((tmp_path / "cache" / "svilm-fast" / "search").iterdir())) == 1
    assert {path.name for path in folder.iterdir()} == {
        "long.mp4",
        "broken.mp4",
        "cut.mp4",
        "notes.txt",
        "sub",
    }


def test_a_place_that_cannot_hold_the_index_is_refused_before_videos_are_read(
    folder, update, read, tmp_path, monkeypatch
):
    (tmp_path / "index").mkdir()
    with pytest.raises(UserError, match=r"cannot be written to .*index \(it is no file\)"):
        update()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "notes.txt"))
    with pytest.raises(UserError, match=r"Not a directory.*--index"):
        update(file=None)
    assert not read


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch, caplog):
    scan = os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "sub/short #1.mp4" not in index_module.find_videos(folder)
    assert "not searched" in caplog.text
    assert "sub" in caplog.text
