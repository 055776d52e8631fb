"""`svilm embed` writes what the run's encoder gives, skips what cannot be loaded, and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.data.errors import DataError
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
