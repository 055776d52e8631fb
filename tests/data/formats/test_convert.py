"""`svilm data convert`: a list, its counts and hash, missing videos listed, nothing overwritten."""

from __future__ import annotations

import hashlib
import json

import pytest

from svilm_fast.cli import app
from svilm_fast.core.errors import UserError
from svilm_fast.data.formats import FORMATS, reader_of
from svilm_fast.data.formats.convert import convert_files
from svilm_fast.data.lists import read_list
from svilm_fast.train.run_app import run_app

LIST = "key,vid_key,video_id,sentence\nret0,msr1,video1,a dog runs\nret1,msr2,video2,a cat sleeps\n"


def call(*arguments) -> int:
    return run_app(app, tuple(map(str, arguments)))


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(LIST)
    return path


def test_the_list_its_counts_and_its_hash(tmp_path, listed, capsys):
    out = tmp_path / "out" / "list.jsonl"
    assert call("data", "convert", "msrvtt", listed, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "2 rows, 2 videos, 2 captions" in shown
    assert hashlib.sha256(out.read_bytes()).hexdigest() in shown
    assert [(row.video, row.caption) for row in read_list(str(out))] == [
        ("video1", "a dog runs"),
        ("video2", "a cat sleeps"),
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["list.jsonl"]


def test_repeated_captions_are_counted(tmp_path, listed):
    listed.write_text(LIST + "ret2,msr3,video3,a dog runs\n")
    result = convert_files("msrvtt", [str(listed)], tmp_path / "list.jsonl")
    assert result.counts == {"caption": 3, "distinct caption": 2}


def test_missing_videos_are_listed_and_not_dropped(tmp_path, listed, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "video1.mp4").write_bytes(b"")
    out = tmp_path / "list.jsonl"
    arguments = ("data", "convert", "msrvtt", listed, "--out", out, "--videos", tmp_path / "clips")
    assert call(*arguments) == 0
    assert "1 video missing (video2)" in capsys.readouterr().out.replace("\n", "")
    assert len(read_list(str(out))) == 2
    head, line = (tmp_path / "list.missing.txt").read_text().splitlines()
    assert hashlib.sha256(out.read_bytes()).hexdigest() in head
    assert line.startswith("video2\tno video 'video2'")
    (tmp_path / "clips" / "video2.mp4").write_bytes(b"")
    assert call(*arguments) == 0
    assert len((tmp_path / "list.missing.txt").read_text().splitlines()) == 1


def test_the_missing_videos_of_a_list_that_is_kept_are_kept(tmp_path, listed):
    (tmp_path / "clips").mkdir()
    out = tmp_path / "list.jsonl"
    convert_files("msrvtt", [str(listed)], out, videos=str(tmp_path / "clips"))
    before = (tmp_path / "list.missing.txt").read_text()
    listed.write_text(LIST + "ret2,msr3,video3,a dog runs\n")
    with pytest.raises(UserError, match="exists with other content"):
        convert_files("msrvtt", [str(listed)], out, videos=str(tmp_path / "clips"))
    assert (tmp_path / "list.missing.txt").read_text() == before


def test_a_file_that_exists_is_kept(tmp_path, listed):
    out = tmp_path / "list.jsonl"
    out.write_text("mine\n")
    with pytest.raises(UserError, match="exists with other content"):
        convert_files("msrvtt", [str(listed)], out)
    assert out.read_text() == "mine\n"
    out.unlink()
    first = convert_files("msrvtt", [str(listed)], out)
    assert convert_files("msrvtt", [str(listed)], out).sha256 == first.sha256
    (tmp_path / "list.missing.txt").write_text("mine\n")
    with pytest.raises(UserError, match="no list of missing videos"):
        convert_files("msrvtt", [str(listed)], out, videos=str(tmp_path))
    assert (tmp_path / "list.missing.txt").read_text() == "mine\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing", "x.csv", "--out", "x.jsonl"], "there is no format 'nothing'; formats:"),
        (["msrvtt", "x.csv"], "--out list.jsonl"),
        (["msrvtt", "x.csv", "--out", "x.txt"], "a list ends in .jsonl"),
        (["msrvtt", "x.csv", "--out", "x.jsonl", "--option", "a"], "give NAME=VALUE"),
        (["msrvtt", "x.csv", "--out", "x.jsonl", "--option", "a=b"], "its options are captions"),
        (["msrvtt", "x.csv", "--out", "x.jsonl"], "'x.csv' does not exist"),
    ],
)
def test_usage_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("data", "convert", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_without_files_is_described(name, capsys):
    assert call("data", "convert", name) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (reader_of(name).__doc__ or "-").split(".")[0] in shown


def test_half_a_surrogate_pair_is_written_as_utf8(tmp_path):
    path = tmp_path / "data.json"
    sentences = [{"sen_id": 0, "video_id": "v", "caption": "a \ud83d dog"}]
    path.write_text(json.dumps({"videos": [{"video_id": "v"}], "sentences": sentences}))
    convert_files("msrvtt", [str(path)], tmp_path / "x.jsonl")
    assert json.loads((tmp_path / "x.jsonl").read_text())["captions"] == ["a ? dog"]
