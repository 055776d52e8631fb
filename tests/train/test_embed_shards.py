"""`svilm embed` writes what the run's encoder gives, skips what cannot be loaded, and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.commands.embed import embed
from svilm_fast.core.errors import UserError
from svilm_fast.data import sample_units
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.manifest import digest
from svilm_fast.data.shards import ShardWriter
from svilm_fast.inference.features import FeatureFormat
from svilm_fast.train.run import embed_shards as module
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


def _input(folder: Path, caption: str, *, indexed: bool = True, size: int = 5000) -> str:
    """The description of a shard of which one caption differs."""
    shutil.rmtree(folder, ignore_errors=True)
    with ShardWriter(folder) as writer:
        writer.write("a", {"mp4": b"v" * size, "json": json.dumps({"caption": caption}).encode()})
        writer.write("b", {"mp4": b"v" * size, "json": b'{"caption": "a dog"}'})
    if not indexed:
        next(folder.glob("*.json")).unlink()
    (unit,) = sample_units.shard_units(str(folder))
    return digest(unit.description)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_of_equal_size_and_other_content_is_other_work(tmp_path, indexed):
    first, again, changed = (
        _input(tmp_path / "shards", caption, indexed=indexed) for caption in ("red", "red", "blue")
    )
    assert first == again != changed


def test_a_change_amid_a_large_shard_is_seen_in_its_index(tmp_path):
    one, other = (_input(tmp_path / "s", each, size=200_000) for each in ("red", "tan"))
    assert one != other


def test_a_remote_shard_is_told_apart_by_the_mark_of_its_store(monkeypatch):
    monkeypatch.setattr(sample_units, "find_shards", lambda source: ["s3://bucket/a.tar"])
    found = []
    for mark in ("v1", "v2"):
        monkeypatch.setattr(
            sample_units.files, "remote_status", lambda path, mark=mark: (10240, mark)
        )
        found.append(sample_units.shard_units("s3://bucket")[0].description)
    assert found == [["a.tar", 10240, "v1"], ["a.tar", 10240, "v2"]]


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
    metadata = table.schema.metadata
    assert len(metadata.pop(b"tower")) == 64
    assert metadata == {b"weights": b"raw", b"step": b"0"}
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


def test_each_worker_chooses_its_device(run, tmp_path, monkeypatch):
    given = {}

    def do_work(kind, work, units, settings, folder, **found):
        given.update(found, device=settings.device)
        return []

    shards = str(run.with_name(run.name + "-world") / "test")
    monkeypatch.setattr(module, "do_work", do_work)
    embed(shards, run=run, out=tmp_path / "out", engine=OfflineEngine.RAY)
    assert (given["device"], given["gpu"]) == ("auto", True)
    embed(shards, run=run, out=tmp_path / "out", device="cpu")
    assert (given["device"], given["gpu"]) == ("cpu", False)
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        embed(shards, run=run, out=tmp_path / "out", device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(module, "worker_number", lambda: 6)
    found = [module._device(wanted) for wanted in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == ["cuda:2", "cuda:2", "cuda:1", "cpu"]
