"""Columns for what few samples carry: equal from memory and from a file, absent where unused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.embeddings import MEMBER
from svilm_fast.data.errors import DataError
from svilm_fast.data.index import columns, store
from svilm_fast.data.index.commands import index
from svilm_fast.data.index.file import Index
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.shards import ShardWriter

RECORDS = [
    {"caption": "a dog"},
    {},
    {"caption": ["a cat", "it sits"], "caption_weights": [1, 3], "label": [2, "cat"]},
    {"captions": {"coarse": "a cup", "fused": "a red cup"}, "question": "what?", "answer": "cup"},
    {"caption": "", "label": 0, "segment": [1, 2]},
]
OPTIONAL = {"caption_weight", "label_text", "question_text", "answers_text", "embedding_size"}


def write(folder: Path, records: list[dict], embedded: int | None = None) -> Path:
    with ShardWriter(folder, max_samples=2) as writer:
        for number, record in enumerate(records):
            members = {"mp4": b"video", "json": json.dumps(record).encode()}
            if number == embedded:
                members[MEMBER] = b"\x93NUMPY"
            writer.write(f"s{number}", members)
    return folder


def told(table: SampleTable) -> list:
    rows = range(len(table))
    weights = [table.caption_weights(table.captions_of(row)) for row in rows]
    return [
        list(table),
        [table.annotations(row) for row in rows],
        [None if each is None else each.tolist() for each in weights],
        [table._entry("embedding", row) for row in rows],
        [table.read_metadata(row) for row in rows],
        (table.fingerprint, table.contents, table.rejected),
    ]


@pytest.mark.parametrize("grain", ["coarse", "fine", "fused", "none"])
def test_a_file_tells_what_memory_tells(tmp_path, grain):
    folder = write(tmp_path / "shards", RECORDS, embedded=3)
    config = DataConfig(train=str(folder), captions=grain)
    memory = told(open_split(config, "train"))
    index([str(folder)], {}, nouns=False)
    table = open_split(config, "train")
    assert table.stored.path is not None
    assert told(table) == memory
    assert told(pickle.loads(pickle.dumps(table))) == memory
    if grain == "none":
        labels = [each.label for each in memory[1]]
        assert labels == [None, None, [2, "cat"], None, 0]
        assert [entry is not None for entry in memory[3]] == [False] * 3 + [True, False]
        assert [sample.captions for sample in table] == [()] * 5
    if grain == "fused":
        assert [sample.id for sample in table] == ["s0", "s2", "s3"]
        assert memory[2] == [None, [1.0, 3.0], None]


def test_a_set_of_videos_and_captions_has_no_other_columns(tmp_path):
    table = open_split(DataConfig(train=str(write(tmp_path / "a", RECORDS[:1] * 3))), "train")
    assert not OPTIONAL & set(table.stored.columns)
    rich = open_split(DataConfig(train=str(write(tmp_path / "b", RECORDS, 1))), "train")
    assert set(rich.stored.columns) >= OPTIONAL


@pytest.mark.parametrize("empty", [[{}, {}], [{"captions": {"coarse": "a cup"}}]])
def test_a_grain_without_any_sample(tmp_path, empty):
    folder = str(write(tmp_path / "shards", empty))
    assert len(open_split(DataConfig(train=folder, captions="none"), "train")) == len(empty)
    with pytest.raises(DataError, match="no usable sample"):
        open_split(DataConfig(train=folder), "train")


def test_an_index_of_an_older_version_is_refused_or_made_again(tmp_path, monkeypatch):
    folder = write(tmp_path / "shards", RECORDS)
    config = DataConfig(train=str(folder))
    index([str(folder)], {}, nouns=False)
    (path,) = folder.glob(".svilm-index-*")

    def age(path: Path) -> None:
        found = Index.open(str(path))
        held = {name: np.array(column) for name, column in found.columns.items()}
        columns.write_columns(path, found.header | {"version": 1}, held)

    age(path)
    with pytest.raises(DataError, match="version 1, not 4: make it again with `svilm data index`"):
        open_split(config, "train")
    index([str(folder)], {}, nouns=False)
    assert len(open_split(config, "train")) == 3
    path.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 2)
    open_split(config, "train")
    (cached,) = (tmp_path / "cache" / "svilm-fast" / "indexes").glob("*.bin")
    age(cached)
    assert len(open_split(config, "train")) == 3
    assert Index.open(str(cached)).header["version"] == 4
