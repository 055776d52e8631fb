"""`svilm search` from words to a table, a page and an overlay; errors end with exit code 2."""

from __future__ import annotations

import pytest

from svilm_fast.cli import app
from svilm_fast.train.run_app import run_app


@pytest.fixture
def search(folder, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: str, model=exported, videos=folder) -> tuple[int, str, str]:
        options = ["--videos", str(videos), "--model", str(model), *words]
        code = run_app(app, ["search", "a brown dog and a red ball", *options])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_folder_with_broken_files(search, tmp_path):
    html, overlay = tmp_path / "found.html", tmp_path / "found.mp4"
    code, out, err = search("--html", str(html), "--overlay", str(overlay), "--top", "2")
    assert code == 0, err
    for part in ("long.mp4", "short #1.mp4", "brown dog", "red ball", "skipped broken.mp4: not a"):
        assert part in out
    assert "4 files read, 0 unchanged, 0 gone" in out
    assert html.is_file()
    assert overlay.is_file()
    code, again, _ = search("--html", str(html), "--overlay", str(overlay), "--top", "2")
    assert code == 0
    assert "0 files read, 4 unchanged, 0 gone" in again
    assert again.splitlines()[:7] == out.splitlines()[:7]


def test_a_run_is_a_model_too(search, exported):
    code, out, err = search("--noun", "cat", model=exported.with_name("run"))
    assert code == 0, err
    assert "cat" in out
    assert "brown dog" in out.splitlines()[0]
    assert "│ brown dog" not in out


def test_errors(search, tmp_path, folder, exported):
    (tmp_path / "mine.html").write_text("mine")
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, places, message in (
        (["--html", str(tmp_path / "mine.html")], {}, "choose another name"),
        ([], {"model": empty}, "neither a folder that `svilm export` wrote nor a run"),
        ([], {"videos": empty}, "holds no video files"),
        (["--weights", "ema"], {}, "holds raw weights, not ema"),
    ):
        code, _, err = search(*words, **places)
        assert code == 2
        assert message in err
    (empty / "broken.mp4").write_text("no video")
    code, out, err = search(videos=empty)
    assert code == 2
    assert "skipped broken.mp4" in out
    assert "no file in" in err
