"""Stored embeddings of a list: each row belongs to one sample, and no other file is replaced."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.data import list_embeddings
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import EmbeddingError
from svilm_fast.data.index.columns import write_columns
from svilm_fast.data.list_embeddings import (
    SUFFIX,
    ListIdentity,
    check_storable,
    write_list_embeddings,
)
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.shards import ShardWriter


def _list(folder: Path, rows: str = "a.mp4,\nb.mp4,\nc.mp4,\n", absent: str = "") -> str:
    folder.mkdir(exist_ok=True)
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(b"video")
    for name in absent:
        (folder / f"{name}.mp4").unlink()
    (folder / "list.csv").write_text("video,caption\n" + rows)
    return str(folder / "list.csv")


def _open(*paths: str) -> SampleTable:
    return open_split(DataConfig(train=list(paths), captions="none"), "train")


def _vectors(rows: int) -> np.ndarray:
    return np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Checks that the block allocates less than a MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_other_videos_that_are_as_many_are_refused(tmp_path):
    path = _list(tmp_path, absent="c")
    table = _open(path)
    write_list_embeddings(path, table.list_identity(0), _vectors(2))
    _open(path).check_embeddings(2)
    (tmp_path / "a.mp4").rename(tmp_path / "c.mp4")
    table = _open(path)
    assert list(table.ids) == ["b.mp4", "c.mp4"]
    with pytest.raises(EmbeddingError, match="the list or its videos have changed since"):
        table.check_embeddings(2)


def test_embeddings_are_found_beside_other_sources(tmp_path):
    # Opened together, equal ids get new names, and every sample has columns of segments.
    first, second = _list(tmp_path / "one"), _list(tmp_path / "two")
    third = _list(tmp_path / "three", "").replace(".csv", ".jsonl")
    Path(third).write_text('{"video": "a.mp4", "start": 0, "end": 1}\n')
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("a", {"mp4": b"video", "json": b'{"id": "a.mp4"}'})
    for number, path in enumerate((first, second, third)):
        table = _open(path)
        write_list_embeddings(path, table.list_identity(0), 10 * number + _vectors(len(table)))
    table = _open(str(tmp_path / "shards"), first, second, third)
    found = [table.read_embedding(place, 2).tolist() for place in range(1, len(table))]
    assert found == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15], [20, 21]]


def test_files_of_the_first_version_are_named_and_replaced(tmp_path):
    path = _list(tmp_path)
    old = {"kind": "stored embeddings", "version": 1, "width": 2, "samples": 3, "checksum": 1}
    write_columns(Path(path + SUFFIX), old, {"vector": _vectors(3).reshape(-1)})
    with pytest.raises(EmbeddingError, match=r"of version 1, not 2: make it again with `svilm e"):
        _open(path).check_embeddings(2)
    write_list_embeddings(path, _open(path).list_identity(0), _vectors(3))
    assert _open(path).read_embedding(2, 2).tolist() == [4, 5]


@pytest.mark.parametrize("content", [b"my notes on stored embeddings", b""])
def test_a_file_of_the_user_is_kept(tmp_path, content):
    path = str(tmp_path / "list.csv")
    Path(path + SUFFIX).write_bytes(content)
    with pytest.raises(EmbeddingError, match="exists and holds no stored embeddings: move it away"):
        write_list_embeddings(path, ListIdentity(3, 1, ""), _vectors(3))
    assert Path(path + SUFFIX).read_bytes() == content


def test_columns_of_another_kind_are_kept(tmp_path):
    path = str(tmp_path / "list.csv")
    write_columns(Path(path + SUFFIX), {"note": "stored embeddings"}, {})
    with pytest.raises(EmbeddingError, match="holds no stored embeddings"):
        check_storable(path)


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(list_embeddings.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(EmbeddingError, match="is no folder that can be written"):
        check_storable(str(tmp_path / "list.csv"))
    with pytest.raises(EmbeddingError, match="on a local disk alone"):
        check_storable("memory://list.csv")


def test_an_earlier_file_is_not_read(tmp_path):
    path, identity = str(tmp_path / "list.csv"), ListIdentity(1 << 20, 1, "")
    write_list_embeddings(path, identity, np.zeros((1 << 20, 4), np.float32))
    with _little_memory():
        check_storable(path)


def test_one_embedding_costs_no_copy_of_a_column(tmp_path, monkeypatch):
    table = _open(_list(tmp_path))
    monkeypatch.setattr(table, "_list_vectors", lambda source, width: _vectors(3))
    shards = np.ones(1 << 20, np.uint32)
    shards[:3] = 0
    table.stored.columns["shard"] = shards
    with _little_memory():
        assert table.read_embedding(2, 2).tolist() == [4, 5]
