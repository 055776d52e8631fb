"""The average of the weights: exact in every stage, invisible to training, resumed bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint.portable import (
    load_average,
    load_moments,
    load_weights,
    save_portable,
)
from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.engine.sharded_state import whole_parameter

STAGES = [0, 1, 2, 3]
EVERYWHERE = [(stage, "fp32") for stage in STAGES] + [(1, "bf16"), (2, "bf16"), (3, "bf16")]


def held(engine: Engine) -> dict[str, Tensor]:
    """What the engine holds now, from the masters."""
    return {
        name: whole_parameter(engine, parameter).detach().clone()
        for name, parameter in engine.model.named_parameters()
    }


def averages(engine: Engine) -> dict[str, Tensor]:
    assert engine.ema is not None
    with engine.ema.applied():
        return held(engine)


def run(engine: Engine, batch_of, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        batch = batch_of(step)
        if engine.config.training.precision == "bf16":
            batch = {name: value.bfloat16() for name, value in batch.items()}
        losses.append(float(engine.step(batch, 0.02).loss))
        if engine.ema is not None:
            engine.ema.update(step + 1)
    return losses


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_that_of_plain_torch(make_engine, batch_of, stage: int) -> None:
    engine = make_engine(
        f"deepspeed.zero_stage={stage}",
        "deepspeed.persistence_elements=0",
        "training.gradient_clipping=0",
        "ema.decay=0.75",
        "ema.start_step=1",
        "ema.every_steps=2",
        dropout=0.0,
    )
    reference = copy.deepcopy(make_engine("deepspeed.zero_stage=0", dropout=0.0).model)
    optimizer = build_optimizer(reference, engine.config.optimizer)
    wanted: dict[str, Tensor] = {}
    for step in range(6):
        run(engine, batch_of, step, step + 1)
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        optimizer.zero_grad()
        reference(batch_of(step)).loss.backward()
        optimizer.step()
        now = {name: p.detach().double() for name, p in reference.named_parameters()}
        if step + 1 == 1:
            wanted = copy.deepcopy(now)
        elif step + 1 in (3, 5):
            kept = 0.75**2
            wanted = {name: kept * wanted[name] + (1 - kept) * now[name] for name in now}
    assert engine.ema is not None
    assert engine.ema.state.updates == 2
    for name, value in averages(engine).items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("stage", "precision"), EVERYWHERE)
def test_looking_at_the_average_changes_no_bit_of_training(
    make_engine, batch_of, stage: int, precision: str
) -> None:
    shared = (f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
    plain = make_engine(*shared, dropout=0.0)
    watched = make_engine(*shared, "ema.decay=0.5", dropout=0.0)
    first = run(plain, batch_of, 0, 3), run(watched, batch_of, 0, 3)
    before = held(watched)
    found = averages(watched)
    assert any(not torch.equal(found[name], before[name]) for name in found)
    assert all(torch.equal(value, before[name]) for name, value in held(watched).items())
    second = run(plain, batch_of, 3, 6), run(watched, batch_of, 3, 6)
    assert first[0] == first[1]
    assert second[0] == second[1]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (3, "bf16")])
def test_forward_reads_the_average_while_it_is_applied(
    make_engine, batch_of, stage: int, precision: str
) -> None:
    engine = make_engine(
        f"deepspeed.zero_stage={stage}",
        f"training.precision={precision}",
        "ema.decay=0.5",
        dropout=0.0,
    )
    run(engine, batch_of, 0, 3)
    batch = batch_of(0)
    if precision == "bf16":
        batch = {name: value.bfloat16() for name, value in batch.items()}
    with torch.no_grad():
        raw = float(engine.deepspeed(batch)[0])
        with engine.evaluated_weights():
            averaged = float(engine.deepspeed(batch)[0])
            now = held(engine)
        assert float(engine.deepspeed(batch)[0]) == raw
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layers = {name: value.to(dtype) for name, value in now.items()}
    hidden = torch.tanh(batch["features"] @ layers["body.0.weight"].T + layers["body.0.bias"])
    out = layers["log_scale"].exp() * (hidden @ layers["body.3.weight"].T + layers["body.3.bias"])
    wanted = float((out - batch["targets"]).float().square().mean())
    assert averaged == pytest.approx(wanted, rel=1e-5 if precision == "fp32" else 2e-2)
    assert averaged != raw


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_average_continues_bit_for_bit(
    make_engine, batch_of, tmp_path: Path, stage: int
) -> None:
    overrides = (f"deepspeed.zero_stage={stage}", "ema.decay=0.9", "ema.warmup=true")
    first = make_engine(*overrides, dropout=0.0)
    run(first, batch_of, 0, 3)
    save_checkpoint(first, tmp_path, TrainerState(3, {}), keep=1)
    run(first, batch_of, 3, 6)
    second = make_engine(*overrides, dropout=0.0, seed=5)
    load_checkpoint(second, tmp_path)
    run(second, batch_of, 3, 6)
    wanted, found = averages(first), averages(second)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert second.ema is not None
    assert second.ema.state.updates == 6


@pytest.mark.parametrize(("source", "target"), [(0, 3), (3, 1), (2, 0), (1, 2)])
def test_the_portable_checkpoint_carries_the_average(
    make_engine, batch_of, tmp_path: Path, source: int, target: int
) -> None:
    shared = ("ema.decay=0.5", "deepspeed.persistence_elements=0")
    first = make_engine(f"deepspeed.zero_stage={source}", *shared, dropout=0.0)
    run(first, batch_of, 0, 3)
    save_portable(first, tmp_path / "portable", 3, {})
    second = make_engine(
        f"deepspeed.zero_stage={target}",
        *shared,
        dropout=0.0,
        seed=5,
        prepare=lambda model: load_weights(model, tmp_path / "portable"),
    )
    load_moments(second, tmp_path / "portable")
    load_average(second, tmp_path / "portable")
    wanted, found = averages(first), averages(second)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    reader = make_engine(
        seed=6, prepare=lambda model: load_weights(model, tmp_path / "portable", average=True)
    )
    read = held(reader)
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_a_run_without_an_average_says_so_when_one_is_asked_for(
    make_engine, batch_of, tmp_path: Path
) -> None:
    save_portable(make_engine(), tmp_path / "portable", 3, {})
    with pytest.raises(CheckpointError, match="holds no average of the weights"):
        load_weights(make_engine().model, tmp_path / "portable", average=True)


def test_an_average_begins_where_the_checkpoint_has_none_and_ends_where_the_run_wants_none(
    make_engine, batch_of, tmp_path: Path, caplog
) -> None:
    plain = make_engine(dropout=0.0)
    run(plain, batch_of, 0, 2)
    save_checkpoint(plain, tmp_path / "plain", TrainerState(2, {}), keep=1)
    begun = make_engine("ema.decay=0.5", seed=5)
    load_checkpoint(begun, tmp_path / "plain")
    assert "holds no average of the weights: averaging starts at this step" in caplog.text
    found, wanted = averages(begun), held(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    save_checkpoint(begun, tmp_path / "averaged", TrainerState(2, {}), keep=1)
    load_checkpoint(make_engine(seed=6), tmp_path / "averaged")
    assert "dropped because ema.decay=null" in caplog.text


def test_before_its_start_there_is_no_average_and_nothing_is_exchanged(
    make_engine, batch_of, tmp_path: Path
) -> None:
    engine = make_engine("ema.decay=0.5", "ema.start_step=4", dropout=0.0)
    run(engine, batch_of, 0, 2)
    before = held(engine)
    assert all(torch.equal(value, before[name]) for name, value in averages(engine).items())
    save_portable(engine, tmp_path / "portable", 2, {})
    assert not (tmp_path / "portable" / "ema.safetensors").exists()
    run(engine, batch_of, 2, 5)
    assert engine.ema is not None
    assert engine.ema.state.updates == 1
