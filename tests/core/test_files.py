"""Files are written whole or not at all."""

import json
from pathlib import Path

import pytest

from svilm_fast.core.files import json_text, write_atomically, write_json


def test_json_is_written_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [1, Path("b")]})
    assert json.loads(path.read_text()) == {"a": [1, "b"]}
    assert path.read_text() == json_text({"a": [1, Path("b")]})
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_breaks_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def full(_):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"other")
    assert json.loads(path.read_text()) == {"a": 1}
