"""`svilm data filter`: scores, the selection of the best, and training on it alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.outputs import OfflineError
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardReader, ShardWriter, load_index
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.filter_clips import filter_clips
from tests.untrained_run import make_untrained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_untrained_run(tmp_path_factory.mktemp("filter") / "run").config.parent


@pytest.fixture(scope="module")
def shards(run, tmp_path_factory) -> Path:
    """The six samples in two shards, and a broken one in the first."""
    (shard,) = (run.with_name(run.name + "-world") / "test").glob("*.tar")
    reader, folder = ShardReader(), tmp_path_factory.mktemp("shards")
    samples = list(load_index(str(shard)).samples.items())
    with ShardWriter(folder, max_samples=4) as writer:
        for number, (key, members) in enumerate(samples):
            content = {e: reader.read(str(shard), m, key, 1 << 30) for e, m in members.items()}
            if number == 2:
                writer.write("broken", {**content, "mp4": b"no video", "json": b'{"caption": "x"}'})
            writer.write(key, content)
    return folder


def _expected(run, shards, tmp_path) -> dict[str, float]:
    """Score of every sample by its id, of the embeddings of `svilm embed`."""
    embed_shards(run, str(shards), tmp_path / "embedded")
    found = {}
    for path in sorted((tmp_path / "embedded").glob("*.npz")):
        with np.load(path) as columns:
            scores = (columns["videos"].astype(np.float64) * columns["texts"]).sum(1)
            found |= dict(zip(columns["ids"].tolist(), scores.tolist()))
    return found


def test_the_best_are_selected_and_training_reads_them(run, shards, tmp_path):
    scores = _expected(run, shards, tmp_path)
    lines = filter_clips(str(shards), tmp_path / "out", run_dir=run, share=0.5)
    best = sorted(scores, key=scores.get, reverse=True)[:3]
    config = DataConfig(train=str(shards), select=str(tmp_path / "out" / "top-0.5.selection"))
    table = open_split(config, "train")
    assert set(table.ids) == set(best)
    assert any("kept 3 of 7 samples" in line and "1 could not be scored" in line for line in lines)
    assert sum("█" in line for line in lines[1:-4]) >= 1
    assert (tmp_path / "out" / "top-0.5.png").read_bytes().startswith(b"\x89PNG")
    whole = open_split(DataConfig(train=str(shards)), "train")
    assert len(whole) == 7  # nothing is deleted
    assert table.fingerprint != whole.fingerprint
    again = pickle.loads(pickle.dumps(table))
    assert list(again.ids) == list(table.ids)
    assert again.fingerprint == table.fingerprint
    assert table.keys_at([1, 0]).tolist() == table.keys[[1, 0]].tolist()
    assert len(pickle.dumps(table)) < 20_000

    # The scores serve other selections; those of `svilm embed` give the same one.
    above = sorted(scores.values())[1]
    filter_clips(str(shards), tmp_path / "out", run_dir=run, threshold=above - 1e-6)
    (name,) = (path.name for path in (tmp_path / "out").glob("from-*.selection"))
    config = config.model_copy(update={"select": str(tmp_path / "out" / name)})
    assert len(open_split(config, "train")) == 5
    embedded = tmp_path / "embedded"
    filter_clips(str(shards), tmp_path / "stored", embeddings=embedded, share=0.5)
    files = [(tmp_path / each / "top-0.5.selection").read_bytes() for each in ("out", "stored")]
    assert files[0] == files[1]


def test_a_shard_without_a_caption_stops_nothing(run, shards, tmp_path):
    """Its samples are refused, each with the reason; the other shards are embedded and scored."""
    (shard,) = (run.with_name(run.name + "-world") / "test").glob("*.tar")
    reader, mixed = ShardReader(), tmp_path / "mixed"
    with ShardWriter(mixed, max_samples=3) as writer:
        for number, (key, members) in enumerate(load_index(str(shard)).samples.items()):
            content = {e: reader.read(str(shard), m, key, 1 << 30) for e, m in members.items()}
            writer.write(key, {**content, "json": b"{}"} if number < 3 else content)
    embedded = embed_shards(run, str(mixed), tmp_path / "embedded")
    assert embedded[0] == "embedded 3 samples of 2 shards; refused 3"
    assert sum("no caption" in line for line in embedded) >= 3
    scored = filter_clips(str(mixed), tmp_path / "scored", run_dir=run, share=1.0)
    assert any("kept 3 of 3 samples" in line and "3 could not be" in line for line in scored)
    filter_clips(str(mixed), tmp_path / "stored", embeddings=tmp_path / "embedded", share=1.0)
    files = [(tmp_path / each / "top-1.selection").read_bytes() for each in ("scored", "stored")]
    assert files[0] == files[1]


def test_work_that_was_stopped_continues_with_equal_bytes(run, shards, tmp_path):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    filter_clips(str(shards), tmp_path / "a", run_dir=run, share=0.5)
    first = files(tmp_path / "a")
    (scores, *_) = sorted((tmp_path / "a").glob("*.npz"))
    scores.unlink()  # as after a kill
    (tmp_path / "a" / "top-0.5.selection").unlink()
    filter_clips(str(shards), tmp_path / "a", run_dir=run, share=0.5, workers=1)
    assert files(tmp_path / "a") == first
    with pytest.raises(OfflineError, match="batch_size=32 before, 4 now"):
        filter_clips(str(shards), tmp_path / "a", run_dir=run, share=0.5, batch_size=4)
    (tmp_path / "a" / "top-0.5.selection").write_bytes(b"mine")
    with pytest.raises(OfflineError, match="would be overwritten"):
        filter_clips(str(shards), tmp_path / "a", run_dir=run, share=0.5)


def test_embeddings_of_other_captions_are_refused(run, shards, tmp_path):
    """They would be scored, and select samples, as if they were those that training reads."""
    embed_shards(run, str(shards), tmp_path / "none", captions="none")
    with pytest.raises(DataError, match=r"other captions than the fused ones .* embedded with ''"):
        filter_clips(str(shards), tmp_path / "x", embeddings=tmp_path / "none", share=0.5)
    with pytest.raises(DataError, match="--captions none"):
        VideoEmbeddings(
            tmp_path / "none", load_config(run / "config.yaml").model.embed_dim, texts=True
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_engines_give_equal_bytes(run, shards, tmp_path):
    pytest.importorskip("ray")
    for engine in OfflineEngine:
        out = tmp_path / engine.value
        filter_clips(str(shards), out, run_dir=run, share=0.5, engine=engine, workers=2)
    for path in (tmp_path / "local").iterdir():
        if path.name != "filter_manifest.jsonl":  # in the order of finishing
            assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes(), path.name


def test_a_list_is_filtered(run, shards, tmp_path):
    (shard, *_) = sorted(shards.glob("*.tar"))
    reader, lines = ShardReader(), []
    for key, members in load_index(str(shard)).samples.items():
        name = f"{key}.mp4"
        (tmp_path / name).write_bytes(reader.read(str(shard), members["mp4"], key, 1 << 30))
        lines.append(f'{{"video": "{name}", "caption": "clip {key}"}}\n')
    path = tmp_path / "list.jsonl"
    path.write_text("".join(lines))
    filter_clips(str(path), tmp_path / "out", run_dir=run, share=1.0)
    select = str(tmp_path / "out" / "top-1.selection")
    table = open_split(DataConfig(train=str(path), select=select), "train")
    assert "broken.mp4" not in list(table.ids)
    assert len(table) == 3


def test_other_data_are_refused(run, shards, tmp_path):
    filter_clips(str(shards), tmp_path / "out", run_dir=run, share=0.5)
    select = str(tmp_path / "out" / "top-0.5.selection")
    other = str(run.with_name(run.name + "-world") / "test")
    with pytest.raises(DataError, match=r"was made for 7 samples with fused captions.* has 6 with"):
        open_split(DataConfig(train=other, select=select), "train")
    with pytest.raises(DataError, match="there is no such file"):
        open_split(DataConfig(train=other, select=str(tmp_path / "none")), "train")
    damaged = bytearray(Path(select).read_bytes())
    damaged[-64:] = b"\xff" * 64
    Path(select).write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged or selects nothing"):
        open_split(DataConfig(train=str(shards), select=select), "train")
    embed_shards(run, other, tmp_path / "other")
    with pytest.raises(DataError, match="holds no embeddings"):
        filter_clips(str(shards), tmp_path / "x", embeddings=tmp_path / "other", share=0.5)
    for wrong in ({}, {"share": 0.5, "threshold": 0.1}):
        with pytest.raises(UserError, match="--keep-share"):
            filter_clips(str(shards), tmp_path / "y", run_dir=run, **wrong)
    with pytest.raises(UserError, match="--run RUN, or --embeddings"):
        filter_clips(str(shards), tmp_path / "y", share=0.5)
    with pytest.raises(DataError, match="nothing would be kept of 7 samples; the highest score"):
        filter_clips(str(shards), tmp_path / "out", run_dir=run, threshold=1.0)
