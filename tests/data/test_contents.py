"""A resume notices videos that were replaced under an unchanged list."""

import json
import logging
import shutil

import pytest

from svilm_fast.data import files
from svilm_fast.data.config import DataConfig
from svilm_fast.data.samples import open_split


@pytest.fixture
def table(tmp_path):
    def listed():
        rows = [{"video": f"{name}.mp4", "caption": f"a {name}"} for name in ("cat", "dog")]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return open_split(DataConfig(train=str(tmp_path / "list.jsonl")), "train")

    for name in ("cat", "dog"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode() * 100_000)
    return listed


def test_another_video_of_the_same_size_is_noticed(table, tmp_path):
    before = table()
    assert before.contents == table().contents
    shutil.copy(tmp_path / "dog.mp4", tmp_path / "cat.mp4")
    after = table()
    assert after.fingerprint == before.fingerprint
    assert after.contents != before.contents


@pytest.mark.parametrize("place", [0, -1])
def test_both_ends_of_a_file_count(tmp_path, place):
    content = bytearray(300_000)
    (tmp_path / "a").write_bytes(content)
    before = files.ends_checksum(str(tmp_path / "a"))
    content[place] = 1
    (tmp_path / "a").write_bytes(content)
    assert files.ends_checksum(str(tmp_path / "a")) != before
    (tmp_path / "b").write_bytes(b"")
    assert files.ends_checksum(str(tmp_path / "b")) == "0 0"


def test_a_video_that_cannot_be_read_ends_no_save(table, tmp_path):
    before = table()
    (tmp_path / "cat.mp4").unlink()
    assert len(before.contents) == 32
    (tmp_path / "cat.mp4").mkdir()
    assert before.contents


def test_a_resume_says_so(monkeypatch, caplog):
    from types import SimpleNamespace

    from svilm_fast.data.loader import ClipLoader

    class Samples(list):
        fingerprint, split, contents = "f", "train", "new"

    loader = object.__new__(ClipLoader)
    skips = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    config = SimpleNamespace(order="sort", same_source="ignore")
    values = {"epoch": 0, "position": 0, "seed": 1, "skips": skips, "rank": 0, "config": config}
    for name, value in values.items():
        setattr(loader, name, value)
    loader.dataset = Samples([0, 1])
    monkeypatch.setattr(ClipLoader, "close", lambda self: None)
    state = loader.state_dict()
    with caplog.at_level(logging.WARNING):
        loader.load_state_dict(state)
        assert not caplog.text
        loader.load_state_dict(state | {"contents": "old"})
        assert "videos of data.train were replaced since the checkpoint" in caplog.text
        caplog.clear()
        del state["contents"]
        loader.load_state_dict(state)
        assert not caplog.text
