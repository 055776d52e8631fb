"""The text tower learns from stored video embeddings: no video is decoded, its tower stays."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.core.errors import CheckpointError, ConfigError, UserError
from svilm_fast.data.errors import DataError, EmbeddingError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.tasks.base import task_of
from svilm_fast.train.run.embed_shards import embed_shards
from svilm_fast.train.run.session import Start, train_as_rank

CLEAN = (
    "objectives.contrast.video=clean",
    "objectives.grounding.weight=0",
    "objectives.temporal.weight=0",
    "evaluation.at_end=false",
)


def test_a_run_learns_from_stored_embeddings(
    configure, ranks, world: Path, tmp_path: Path, monkeypatch
) -> None:
    first = configure(*CLEAN, "training.steps=1", run="first")
    train_as_rank(first, Start(), ranks)
    stored = tmp_path / "stored"
    embed_shards(first.run.dir, str(world / "train"), stored)

    lit = [*CLEAN, "video.lock=true", f"data.video_embeddings={stored}", "optimizer.lr=0.01"]
    config = configure(*lit, "training.steps=3", run="lit")
    monkeypatch.setattr(
        "svilm_fast.data.dataset.decode_limited", lambda *a, **k: pytest.fail("a video is decoded")
    )
    source = Path(first.run.dir) / "portable"
    train_as_rank(config, Start(weights_from=source), ranks)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (source, tmp_path / "lit/portable")
    )
    for name in before:
        tower = name.split(".")[1]
        if tower == "video":
            assert torch.equal(after[name], before[name])
    assert not torch.equal(
        after["encoder.text.embedding.tokens"], before["encoder.text.embedding.tokens"]
    )

    # What the objective reads is what was stored.
    task = task_of(config)
    tokenizer = Tokenizer.load(Path(config.run.dir) / "tokenizer.json")
    dataset = task.dataset("train", tokenizer, train=True)
    batch = dataset.batch([5, 0, 11])
    features = task.model().embed(task.inputs(batch, 0, ranks))
    with np.load(next(stored.glob("*.npz"))) as columns:
        rows = dict(zip(columns["ids"].tolist(), columns["videos"], strict=True))
    expected = torch.from_numpy(np.stack([rows[name] for name in batch.ids]))
    torch.testing.assert_close(features.clean.video, expected)
    assert task.flops().video.total == 0
    assert batch.frames.shape == (3, 1, 1, 1, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*CLEAN], "needs video.lock=true"),
        (
            ["video.lock=true", *CLEAN[1:], "objectives.contrast.video=blended"],
            "an objective reads video of blended clips",
        ),
    ],
)
def test_what_stored_embeddings_cannot_serve_is_refused(configure, overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(*overrides, "data.video_embeddings=somewhere")


@pytest.mark.parametrize(
    ("weights", "lit"), [("other", []), ("first", ["video.pixels=clip"])]
)
def test_embeddings_of_another_video_tower_are_refused(
    weights, lit, configure, ranks, world: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("first", "other")):
        earlier = configure(*CLEAN, "training.steps=1", f"run.seed={seed}", run=name)
        train_as_rank(earlier, Start(), ranks)
    stored = tmp_path / "stored"
    embed_shards(tmp_path / "first", str(world / "train"), stored)
    settings = [*CLEAN, "video.lock=true", f"data.video_embeddings={stored}", "training.steps=1"]
    config = configure(*settings, *lit, run="lit")
    with pytest.raises(UserError, match="that of this run .* Start with --weights-from"):
        train_as_rank(config, Start(weights_from=tmp_path / weights / "portable"), ranks)
    assert not (tmp_path / "lit" / "config.yaml").exists()


def test_a_run_does_not_resume_with_embeddings_of_another_tower(
    configure, ranks, world: Path, tmp_path: Path
) -> None:
    first = configure(*CLEAN, "training.steps=1", run="first")
    train_as_rank(first, Start(), ranks)
    stored = tmp_path / "stored"
    embed_shards(first.run.dir, str(world / "train"), stored)
    lit = [*CLEAN, "video.lock=true", f"data.video_embeddings={stored}"]
    source = tmp_path / "first" / "portable"
    train_as_rank(configure(*lit, "training.steps=1", run="lit"), Start(weights_from=source), ranks)
    longer = configure(*lit, "training.steps=2", run="lit")
    with np.load(next(stored.glob("*.npz"))) as file:
        columns = dict(file) | {"tower": np.array("ab" * 32)}
    for path in stored.glob("*.npz"):
        path.unlink()
    np.savez(stored / "a.npz", **columns)
    with pytest.raises(CheckpointError, match="task's state differs"):
        train_as_rank(longer, Start(resume=True), ranks)
    np.savez(stored / "a.npz", **columns | {"tower": np.array(read_tower(tmp_path / "lit"))})
    train_as_rank(longer, Start(resume=True), ranks)


def read_tower(run: Path) -> str:
    return json.loads((run / "task.json").read_text())["video_tower"]


def test_settings_that_change_no_embedding_change_no_digest() -> None:
    from svilm_fast.models.config import VideoConfig
    from svilm_fast.models.tower_digest import video_tower_digest
    from svilm_fast.models.video_encoder import VideoEncoder

    small = {"frames": 4, "image_size": 16, "patch": 8, "width": 8, "depth": 2, "heads": 2}
    small |= {"num_groups": 2, "num_segments": 2}

    def digest(groups: bool = True, **changes) -> str:
        tower = VideoEncoder(VideoConfig(**small | changes), 8, groups=groups)
        for parameter in tower.parameters():
            torch.nn.init.ones_(parameter)
        return video_tower_digest(tower)

    trained = {"drop": {"rate": 0.5}, "lock": True, "dropout": 0.1, "num_segments": 1}
    assert digest(**trained) == digest()
    assert digest(False, grouping={"temperature": 2.0}) == digest(False)
    changed = [
        {"heads": 4},
        {"norm_eps": 1e-6},
        {"activation": "quick_gelu"},
        {"pixels": "half"},
        {"grouping": {"temperature": 2.0}},
        {"groups": False},
    ]
    assert len({digest(), *(digest(**each) for each in changed)}) == 7


TOWER = "a1" * 32


def _write(
    folder: Path, name: str, ids: list[str], videos: np.ndarray, tower: str = TOWER
) -> None:
    folder.mkdir(exist_ok=True)
    columns = {"ids": np.array(ids, np.str_), "videos": videos, "tower": np.array(tower)}
    np.savez(folder / f"{name}.npz", **columns)


def _without_tower(folder: Path) -> None:
    folder.mkdir()
    np.savez(folder / "a.npz", ids=np.array(["x"]), videos=np.zeros((1, 3), np.float32))


def _of_two_towers(folder: Path) -> None:
    for name, tower in (("a", "a1" * 32), ("b", "b2" * 32)):
        _write(folder, name, [name], np.zeros((1, 3), np.float32), tower)


def test_embeddings_of_several_files_are_found_by_name(tmp_path: Path) -> None:
    from svilm_fast.data.keys import sample_key

    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    _write(tmp_path / "e", "b", ["v1", "v2"], values[:2])
    _write(tmp_path / "e", "a", ["v3", "v4", "v5"], values[2:])
    _write(tmp_path / "e", "c", [], np.empty((0, 3), np.float32))
    found = pickle.loads(pickle.dumps(VideoEmbeddings(tmp_path / "e", 3)))
    assert len(found) == 5
    assert found.tower == TOWER
    for number in range(5):
        name = f"v{number + 1}"
        assert np.array_equal(found.read(sample_key(name), name), values[number])
    with pytest.raises(EmbeddingError, match="v6: no embedding in"):
        found.read(sample_key("v6"), "v6")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.mkdir(), r"no \.npz files"),
        (_without_tower, "does not say which video tower"),
        (_of_two_towers, "by different video towers"),
        (lambda f: _write(f, "a", ["x"], np.zeros((1, 4), np.float32)), "another model.embed_dim"),
        (lambda f: _write(f, "a", ["x"], np.zeros((1, 3))), "float64"),
        (lambda f: _write(f, "a", ["x", "x"], np.zeros((2, 3), np.float32)), "one sample twice"),
        (lambda f: (f.mkdir(), (f / "a.npz").write_bytes(b"PK")), "was not written by"),
        (lambda f: (f.mkdir(), np.savez(f / "a.npz", other=np.zeros(1))), "was not written by"),
        (
            lambda f: (
                f.mkdir(),
                np.savez_compressed(
                    f / "a.npz", ids=np.array(["x"]), videos=np.zeros((1, 3), np.float32)
                ),
            ),
            "is compressed",
        ),
    ],
)
def test_files_that_are_no_stored_embeddings(make, message, tmp_path: Path) -> None:
    make(tmp_path / "e")
    with pytest.raises(DataError, match=message):
        VideoEmbeddings(tmp_path / "e", 3)


def test_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    from svilm_fast.data.keys import sample_key

    _write(tmp_path / "e", "a", ["x"], np.array([[1, np.nan, 0]], np.float32))
    with pytest.raises(EmbeddingError, match="not finite"):
        VideoEmbeddings(tmp_path / "e", 3).read(sample_key("x"), "x")
