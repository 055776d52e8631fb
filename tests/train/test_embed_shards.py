"""`svilm embed` writes what the run's encoder gives, skips what cannot be loaded, and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import DataError
from svilm_fast.inference.features import FeatureFormat
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.embedding import embed_texts, embed_videos
from svilm_fast.train.run.loaded_run import load_run
from tests.untrained_run import make_untrained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_untrained_run(tmp_path_factory.mktemp("embed") / "run").config.parent


def test_embeddings_are_those_of_files_and_sentences(run, tmp_path):
    shards = run.with_name(run.name + "-world") / "test"
    out = tmp_path / "out"
    assert embed_shards(run, str(shards), out)[0] == "embedded 6 samples of 1 shard; refused 0"
    (path,) = out.glob("*.npz")
    content = path.read_bytes()
    with np.load(path) as found:  # without pickle
        columns = dict(found)
    loaded = load_run(run)
    torch.testing.assert_close(
        torch.from_numpy(columns["texts"]), embed_texts(loaded, columns["captions"].tolist())
    )
    from svilm_fast.data.shards import ShardReader, load_index

    (shard,) = shards.glob("*.tar")
    entries, reader = load_index(str(shard)).samples, ShardReader()
    videos = []
    for name in columns["ids"].tolist():
        videos.append(tmp_path / f"{name}.mp4")
        videos[-1].write_bytes(reader.read(str(shard), entries[name]["mp4"], name, 1 << 30))
    torch.testing.assert_close(
        torch.from_numpy(columns["videos"]), embed_videos(loaded, videos), rtol=1e-4, atol=1e-5
    )
    path.unlink()  # as after a kill
    embed_shards(run, str(shards), out)
    assert path.read_bytes() == content
    with pytest.raises(DataError, match="batch_size=32 before, 4 now"):
        embed_shards(run, str(shards), out, batch_size=4)


def test_parquet_holds_the_same_columns_and_equal_bytes_each_time(run, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    shards = str(run.with_name(run.name + "-world") / "test")
    embed_shards(run, shards, tmp_path / "npz")
    paths = []
    for name in ("first", "second"):
        embed_shards(run, shards, tmp_path / name, format=FeatureFormat.PARQUET)
        paths += (tmp_path / name).glob("*.parquet")
    table = pq.read_table(paths[0])
    with np.load(next((tmp_path / "npz").glob("*.npz"))) as stored:
        assert table["id"].to_pylist() == stored["ids"].tolist()
        assert table["caption"].to_pylist() == stored["captions"].tolist()
        for column in ("video", "text"):
            assert table[column].to_pylist() == stored[column + "s"].tolist()
    assert table.schema.metadata == {b"weights": b"raw", b"step": b"0"}
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(UserError, match="--store"):
        embed_shards(run, shards, tmp_path / "x", format=FeatureFormat.PARQUET, store=True)
    with pytest.raises(DataError, match="format"):
        embed_shards(run, shards, tmp_path / "npz", format=FeatureFormat.PARQUET)


def test_parquet_without_pyarrow_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"svilm-fast\[parquet\]"):
        embed_shards(run, "absent", tmp_path / "out", format=FeatureFormat.PARQUET)
    assert not (tmp_path / "out").exists()
