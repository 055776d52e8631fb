"""`svilm embed LIST --store`: equal to the embeddings of shards, and read back by a data set."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.data import sample_units
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError, EmbeddingError
from svilm_fast.data.list_embeddings import SUFFIX
from svilm_fast.data.shards import ShardReader, load_index
from svilm_fast.tasks.clips import evaluation_clips, training_clips
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.loaded_run import load_run
from tests.untrained_run import make_untrained_run

NAMES = ["2", "0", "1", "broken", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_untrained_run(tmp_path_factory.mktemp("embed") / "run").config.parent


@pytest.fixture
def listed(run, tmp_path) -> str:
    (shard,) = (run.with_name(run.name + "-world") / "test").glob("*.tar")
    entries, reader = list(load_index(str(shard)).samples.values()), ShardReader()
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "list.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption"])
        for name in NAMES:
            # One sample has no caption: it has no row in the grain of the run.
            writer.writerow([f"{name}.mp4", "" if name == "1" else f"clip {name} moves"])
            found = b"no video" if name == "broken" else None
            found = found or reader.read(str(shard), entries[int(name)]["mp4"], name, 1 << 30)
            (tmp_path / "data" / f"{name}.mp4").write_bytes(found)
    return str(tmp_path / "data" / "list.csv")


def _dataset(listed: str, width: int, **settings) -> ClipDataset:
    config = DataConfig(train=listed, captions="none", **settings)
    return ClipDataset(
        config, "train", prepare_tokenizer(config), frames=2, image_size=16, embeddings=width
    )


def test_a_list_is_embedded_and_its_rows_are_read_back(run, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_units, "_PIECE", 2)
    width = load_run(run).config.model.embed_dim
    with pytest.raises(EmbeddingError, match=r"no stored embeddings in .*svilm embed LIST --store"):
        _dataset(listed, width)
    # One has no caption, one is broken.
    lines = embed_shards(run, listed, tmp_path / "out", store=True)
    assert lines[0] == f"embedded 3 samples of {listed}; refused 2"
    pieces = [np.load(path) for path in sorted((tmp_path / "out").glob("*.npz"))]
    ids = [name for piece in pieces for name in piece["ids"].tolist()]
    assert ids == ["2.mp4", "0.mp4", "3.mp4"]
    vectors = torch.from_numpy(np.concatenate([piece["videos"] for piece in pieces]))
    dataset = pickle.loads(pickle.dumps(_dataset(listed, width)))
    assert list(dataset.ids) == [f"{name}.mp4" for name in NAMES]
    assert torch.equal(dataset.batch([0, 1, 4]).embeddings, vectors)
    for place in (2, 3):  # without a caption, and broken
        with pytest.raises(EmbeddingError, match="its list stores no finite embedding"):
            dataset.batch([place])
    # A new grain is other work; `none` embeds the sample without a caption as well.
    lines = embed_shards(run, listed, tmp_path / "all", store=True, captions="none")
    assert lines[0] == f"embedded 4 samples of {listed}; refused 1"
    whole = _dataset(listed, width)
    torch.testing.assert_close(whole.batch([0, 1, 4]).embeddings, vectors, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(whole.batch([2]).embeddings).all()

    config = load_run(run).config
    data = config.data.model_copy(
        update={"train": listed, "test": listed, "captions": "none", "videos": None}
    )
    config = config.model_copy(update={"data": data})
    evaluation = config.evaluation.model_copy(update={"captions": "none"})
    config = config.model_copy(update={"evaluation": evaluation})
    tokenizer = load_run(run).tokenizer
    for clips, split in ((training_clips, "train"), (evaluation_clips, "test")):
        opened = clips(config, split, tokenizer, nouns=False, annotations=True, embeddings=width)
        batch = opened.batch([0])
        assert torch.equal(batch.embeddings, whole.batch([0]).embeddings)
        assert batch.answers == [[]]


def test_what_was_made_of_another_list_or_width_is_refused(run, listed, tmp_path):
    width = load_run(run).config.model.embed_dim
    embed_shards(run, listed, tmp_path / "out", store=True)
    with pytest.raises(EmbeddingError, match=f"vectors of {width} numbers, not {width + 1}"):
        _dataset(listed, width + 1)
    text = Path(listed).read_bytes()
    Path(listed).write_bytes(text.replace(b"clip 0", b"clip 9"))
    with pytest.raises(EmbeddingError, match="the list or its videos have changed since"):
        _dataset(listed, width)
    Path(listed).write_bytes(text)
    _dataset(listed, width)
    Path(listed + SUFFIX).write_bytes(b"a file of the user")
    with pytest.raises(EmbeddingError, match="no stored embeddings"):
        _dataset(listed, width)
    with pytest.raises(EmbeddingError, match="exists and holds no stored embeddings"):
        embed_shards(run, listed, tmp_path / "new", store=True)
    assert not (tmp_path / "new").exists()  # noticed before anything was embedded
    assert Path(listed + SUFFIX).read_bytes() == b"a file of the user"


def test_a_video_that_was_replaced_is_other_work(run, listed, tmp_path):
    embed_shards(run, listed, tmp_path / "out")
    video = Path(listed).with_name("0.mp4")
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    with pytest.raises(DataError, match="the input has changed"):
        embed_shards(run, listed, tmp_path / "out")


def test_shards_store_nothing(run, tmp_path):
    shards = run.with_name(run.name + "-world") / "test"
    with pytest.raises(DataError, match="stored beside lists alone"):
        embed_shards(run, str(shards), tmp_path / "out", store=True)
    assert not (tmp_path / "out").exists()
