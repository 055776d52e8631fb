"""Files of columns whose writer was killed: the next write leaves no temporary file behind."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.data.errors import DataError
from svilm_fast.data.index import build, columns
from svilm_fast.data.index.columns import locked_file, read_columns, write_columns
from svilm_fast.data.index.commands import index
from tests.data.index.test_building import write

# No tests of this process run in it: it writes and dies.
FORK = multiprocessing.get_context("fork")


def _die_when(name: str, call, *arguments) -> None:
    """Run a call in another process that dies when it publishes the file `name`."""

    def run() -> None:
        def dies(source, target):
            if Path(target).name == name:
                os._exit(9)
            return replace(source, target)

        replace = Path.replace
        Path.replace = dies
        call(*arguments)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_embeddings_that_are_written_again(tmp_path):
    path, content = tmp_path / "list.csv.embeddings", {"vector": np.arange(3, dtype="<f4")}
    for _ in range(2):
        _die_when(path.name, write_columns, path, {}, content)
        assert len(list(tmp_path.iterdir())) == 1
    write_columns(path, {}, content)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert read_columns(str(path))[1]["vector"].tolist() == [0, 1, 2]


def test_an_index_that_is_made_again(tmp_path):
    folder = write(tmp_path, 6, 2)
    index([str(folder)], {}, nouns=False)
    (path,) = folder.glob(".svilm-*")
    expected = path.read_bytes()
    path.unlink()
    for _ in range(2):
        _die_when(path.name, lambda: index([str(folder)], {}, nouns=False))
    index([str(folder)], {}, nouns=False)
    assert list(folder.glob(".*")) == [path]
    assert path.read_bytes() == expected


def test_killed_while_the_inputs_are_written(tmp_path, monkeypatch):
    folder = write(tmp_path, 6, 2)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_clear", lambda folder: None)
        patch.setattr(build.Outputs, "publish", lambda self: (_ for _ in ()).throw(OSError))
        with pytest.raises(DataError, match="cannot be written"):
            index([str(folder)], {}, nouns=False)
    assert list(folder.glob(".*.parts/.inputs.*"))
    index([str(folder)], {}, nouns=False)
    assert not list(folder.glob(".*.parts"))


def test_one_writer_of_a_file_at_a_time(tmp_path, monkeypatch):
    path, save = tmp_path / "list.csv.embeddings", columns.save_columns

    def meanwhile(temporary, header, content):
        with pytest.raises(DataError, match=r"another process writes \S+embeddings: wait for it"):
            write_columns(path, header, content)
        save(temporary, header, content)

    monkeypatch.setattr(columns, "save_columns", meanwhile)
    write_columns(path, {"note": "first"}, {})
    assert read_columns(str(path))[0] == {"note": "first"}


def test_a_lock_is_of_the_file_that_has_the_name(tmp_path, monkeypatch):
    path, lock = tmp_path / "lock", columns.fcntl.flock
    calls = []

    def renamed_before(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            path.rename(tmp_path / "published")
        lock(handle, how)

    monkeypatch.setattr(columns.fcntl, "flock", renamed_before)
    with locked_file(path, "in use"):
        assert path.exists()
    assert len(calls) == 2
