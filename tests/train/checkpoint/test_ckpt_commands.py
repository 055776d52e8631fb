"""A run's DeepSpeed checkpoint becomes a portable one without ranks, and is described."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.train.checkpoint.portable import save_portable
from svilm_fast.train.checkpoint.store import TrainerState, save_checkpoint
from svilm_fast.train.checkpoint.zero_files import read_pickled
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.folder.lock import FolderLock

FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")


def lock_and_buffer(model: nn.Module) -> None:
    model.body[0].bias.requires_grad_(False)
    model.register_buffer("seen", torch.arange(3))


def trained(make_engine, batch_of: Callable, *overrides: str) -> Engine:
    engine = make_engine("ema.decay=0.5", *overrides, prepare=lock_and_buffer)
    bf16 = engine.config.training.precision == "bf16"
    for step in range(3):
        batch = batch_of(step)
        engine.step({k: v.bfloat16() if bf16 else v for k, v in batch.items()}, 0.02)
        engine.ema.update(step + 1)
    return engine


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["ckpt", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{result.exit_code} {result.output}"


@pytest.mark.parametrize(
    "overrides",
    [
        ("deepspeed.zero_stage=0",),
        ("deepspeed.zero_stage=1", "optimizer.name=sgd"),
        ("deepspeed.zero_stage=1", "training.precision=bf16"),
        ("deepspeed.zero_stage=2",),
        ("deepspeed.zero_stage=3", "training.precision=bf16"),
        ("deepspeed.zero_stage=3", "deepspeed.persistence_elements=0"),
    ],
)
def test_converted_equals_what_the_engine_gathers(
    make_engine, batch_of, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    engine = trained(make_engine, batch_of, *overrides)
    state = TrainerState(3, {"position": 24})
    save_checkpoint(engine, tmp_path / "checkpoints", state, keep=1)
    save_portable(engine, tmp_path / "gathered", 3, state.data)
    assert call("convert", "--run", tmp_path).startswith("0 wrote")
    for name in FILES:
        wanted = load_file(tmp_path / "gathered" / name)
        found = load_file(tmp_path / "portable" / name)
        assert wanted
        assert set(found) == set(wanted)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    described = [
        json.loads((tmp_path / folder / "state.json").read_text())
        for folder in ("gathered", "portable")
    ]
    assert described[0] == described[1]
    assert described[1]["updates"] == (0 if "optimizer.name=sgd" in overrides else 3)


def test_damage_is_refused_and_info_names_it(make_engine, batch_of, tmp_path: Path) -> None:
    engine = trained(make_engine, batch_of, "deepspeed.zero_stage=1")
    folder = save_checkpoint(engine, tmp_path / "checkpoints", TrainerState(3, {}), keep=1)
    told = call("info", tmp_path)
    assert told.startswith("0 ")
    assert "step 3, ZeRO 1 over 1 rank, fp32, adamw, 5 parameter tensors, EMA of 3 updates" in told
    assert "all SHA-256 checksums match" in told
    (shards,) = folder.glob("*_optim_states.pt")
    content = bytearray(shards.read_bytes())
    content[-1] ^= 1
    shards.write_bytes(bytes(content))
    told = call("info", folder)
    assert told.startswith("1 ")
    assert f"NOT usable: {shards.name} has changed" in told
    with pytest.raises(CheckpointError, match=f"{shards.name} has changed"):
        call("convert", "--run", tmp_path, "--step", 3)
    assert not (tmp_path / "portable").exists()


def test_absent_steps_and_taken_folders_are_one_line(make_engine, batch_of, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        call("info", tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint; `svilm ckpt info`"):
        call("convert", "--run", tmp_path)
    engine = trained(make_engine, batch_of, "deepspeed.zero_stage=0")
    save_checkpoint(engine, tmp_path / "checkpoints", TrainerState(3, {}), keep=1)
    with pytest.raises(CheckpointError, match="holds no checkpoint of step 7"):
        call("convert", "--run", tmp_path, "--step", 7)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match="is not a portable checkpoint; give another --out"):
        call("convert", "--run", tmp_path, "--out", tmp_path / "photos", "--overwrite")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    call("convert", "--run", tmp_path)
    with pytest.raises(UserError, match="replace it with --overwrite"):
        call("convert", "--run", tmp_path)
    assert call("convert", "--run", tmp_path, "--overwrite").startswith("0 wrote")
    assert "portable, adamw" in call("info", tmp_path)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "called",))

    torch.save({"module": Harmful()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"nothing in it was executed .*getattr"):
        read_pickled(tmp_path / "mp_rank_00_model_states.pt")
    assert not (tmp_path / "called").exists()


def test_a_run_that_is_training_is_left_alone(make_engine, batch_of, tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine = trained(make_engine, batch_of, "deepspeed.zero_stage=0")
    save_checkpoint(engine, run / "checkpoints", TrainerState(3, {}), keep=1)
    lock = FolderLock(run)
    lock.acquire()
    try:
        with pytest.raises(UserError, match="is in use by process"):
            call("convert", "--run", run)
        assert not (run / "portable").exists()
        assert call("convert", "--run", run, "--out", tmp_path / "copy").startswith("0 wrote")
    finally:
        lock.release()
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    with pytest.raises(UserError, match="is a symbolic link"):
        call("convert", "--run", run, "--out", tmp_path / "link", "--overwrite")


def test_only_files_that_the_manifest_lists_are_read(make_engine, batch_of, tmp_path: Path) -> None:
    engine = trained(make_engine, batch_of, "deepspeed.zero_stage=1")
    folder = save_checkpoint(engine, tmp_path / "checkpoints", TrainerState(3, {}), keep=1)
    for pattern in ("*_optim_states.pt", "*_model_states.pt", "ema_rank_*.safetensors"):
        (path,) = folder.glob(pattern)
        (folder / path.name.replace("rank_0", "rank_1")).write_bytes(b"not of the run")
    assert call("convert", "--run", tmp_path).startswith("0 wrote")
