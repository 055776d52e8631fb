"""The folder of a campaign: tables that share it, and data that two of them make differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.train.campaigns.command import MARK, _claim, _prepare

SETTINGS = ["--train", "2", "--val", "0", "--test", "0"]
WORLD = ["data", "world", *SETTINGS, "--out", "{out}/world"]


def test_tables_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    for table in ("groups", "beta", "groups"):
        _claim(folder, table)
    assert json.loads((folder / MARK).read_bytes()) == {"tables": ["groups", "beta"]}


def test_a_folder_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text('{"table": "groups"}')
    _claim(tmp_path, "groups")
    assert json.loads((tmp_path / MARK).read_bytes()) == {"table": "groups"}
    _claim(tmp_path, "beta")
    assert json.loads((tmp_path / MARK).read_bytes()) == {"tables": ["groups", "beta"]}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"has content that is not of `svilm ablate`"):
        _claim(tmp_path, "beta")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_data_are_made_once_and_never_in_two_ways(tmp_path: Path) -> None:
    _prepare([WORLD], tmp_path)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "world").rglob("*")}
    assert made
    _prepare([WORLD], tmp_path)
    with pytest.raises(UserError, match=r"world was made by .*needs .*seed=1`; give another"):
        _prepare([[*WORLD, "seed=1"]], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "world").rglob("*")} == made
