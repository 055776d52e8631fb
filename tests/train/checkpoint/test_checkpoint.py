"""Checkpoints exist only when complete, are read only when untouched, and continue bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint import store as module
from svilm_fast.train.checkpoint.store import (
    MANIFEST,
    TrainerState,
    committed_tags,
    load_checkpoint,
    newest_verified,
    problem_with,
    save_checkpoint,
    tag_of,
    write_manifest,
)
from svilm_fast.train.engine.engine import Engine


def train(engine: Engine, batch_of: Callable, first: int, last: int) -> list[float]:
    return [float(engine.step(batch_of(step), 0.02).loss) for step in range(first, last)]


def save(engine: Engine, folder: Path, step: int, keep: int = 9) -> Path:
    return save_checkpoint(engine, folder, TrainerState(step, {"position": step * 8}), keep)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "bf16_autocast"), (3, "fp32"), (3, "bf16_autocast")],
)
def test_a_resumed_run_repeats_the_losses_bit_for_bit(
    make_engine, batch_of, tmp_path: Path, stage: int, precision: str
) -> None:
    overrides = (f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
    first = make_engine(*overrides)
    train(first, batch_of, 0, 3)
    save(first, tmp_path, 3)
    wanted = train(first, batch_of, 3, 8)
    second = make_engine(*overrides, seed=5)
    state = load_checkpoint(second, tmp_path)
    assert state == TrainerState(3, {"position": 24})
    assert train(second, batch_of, 3, 8) == wanted


def test_all_generators_continue(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    save(engine, tmp_path, 1)
    wanted = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    load_checkpoint(engine, tmp_path)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == wanted


def test_nothing_saved_is_no_error_but_says_none(make_engine, tmp_path: Path) -> None:
    assert load_checkpoint(make_engine(), tmp_path / "absent") is None


def test_a_rank_that_dies_during_the_save_leaves_the_previous_checkpoint(
    make_engine, batch_of, tmp_path: Path, monkeypatch, caplog
) -> None:
    engine = make_engine("deepspeed.zero_stage=1")
    train(engine, batch_of, 0, 2)
    save(engine, tmp_path, 2)
    wanted = train(engine, batch_of, 2, 4)

    def die(*args: object) -> None:
        raise KeyboardInterrupt("killed before the commit")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            save(engine, tmp_path, 4)
    assert (tmp_path / tag_of(4)).is_dir()
    assert (tmp_path / "latest").read_text() == tag_of(2)
    state = load_checkpoint(engine, tmp_path)
    assert state is not None
    assert state.step == 2
    assert "step_00000004 is skipped: its save did not complete" in caplog.text
    assert train(engine, batch_of, 2, 4) == wanted
    save(engine, tmp_path, 4)
    assert newest_verified(tmp_path) == tag_of(4)


def test_every_flipped_byte_missing_file_and_truncation_is_found(
    make_engine, tmp_path: Path
) -> None:
    folder = save(make_engine(), tmp_path, 1)
    assert problem_with(folder) is None
    source = random.Random(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.name == MANIFEST:
            continue
        content = path.read_bytes()
        for _ in range(12):
            place = source.randrange(len(content))
            damaged = bytearray(content)
            damaged[place] ^= 1 << source.randrange(8)
            path.write_bytes(bytes(damaged))
            assert problem_with(folder) == f"{path.name} has changed since it was written"
        for share in (0, 0.5, 0.99):
            path.write_bytes(content[: int(share * len(content))])
            assert str(problem_with(folder)).startswith(f"{path.name} has ")
        path.unlink()
        assert problem_with(folder) == f"{path.name} is missing"
        path.write_bytes(content)
    assert problem_with(folder) is None


def test_damage_falls_back_to_the_one_before_with_a_notice(
    tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(module, "required_files", lambda folder: [])
    for step in (1, 2):
        folder = tmp_path / tag_of(step)
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 64)
        write_manifest(folder)
    (tmp_path / tag_of(2) / "weights").write_bytes(b"y" * 64)
    assert newest_verified(tmp_path) == tag_of(1)
    assert "step_00000002 is skipped: weights has changed" in caplog.text
    (tmp_path / tag_of(1) / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"no checkpoint .* passes verification.*--overwrite"):
        newest_verified(tmp_path)


def test_latest_without_any_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step_00000007")
    with pytest.raises(CheckpointError, match="latest names 'step_00000007', which does not exist"):
        newest_verified(tmp_path)


def test_only_the_newest_are_kept(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    for step in (1, 2, 3):
        save(engine, tmp_path, step, keep=2)
    assert committed_tags(tmp_path) == [tag_of(3), tag_of(2)]
    assert not (tmp_path / tag_of(1)).exists()


def test_another_shape_names_the_parameter_and_both_shapes(make_engine, tmp_path: Path) -> None:
    save(make_engine(width=8), tmp_path, 1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(make_engine(width=6), tmp_path)
    assert "parameter 'body.0.weight' has shape [8, 4], the model's is [6, 4]" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [("deepspeed.zero_stage=2", "zero_stage=1"), ("training.precision=bf16", "precision=fp32")],
)
def test_another_stage_or_precision_is_refused_with_a_way_out(
    make_engine, tmp_path: Path, override: str, named: str
) -> None:
    save(make_engine("deepspeed.zero_stage=1"), tmp_path, 1)
    with pytest.raises(CheckpointError, match=rf"written with {named}.*--init-from"):
        load_checkpoint(make_engine(override), tmp_path)


def test_another_world_size_is_refused(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    folder = save(engine, tmp_path, 1)
    described = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(described | {"world_size": 4}))
    for path in [*folder.glob("*_rank_00000.*"), *folder.glob("*_rank_0_*")]:
        for rank in (1, 2, 3):
            other = path.name.replace("rank_00000", f"rank_0000{rank}")
            (folder / other.replace("rank_0_", f"rank_{rank}_")).write_bytes(path.read_bytes())
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"world_size=4, but this run has 1"):
        load_checkpoint(engine, tmp_path)
