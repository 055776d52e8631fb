"""The teacher is the video tower's moving average: in every stage, after a resume, on ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.engine.engine import Engine
from tests.distributed.conftest import small_engine
from tests.objectives.test_vidrop import CROPS, NOISY, SELF, inputs

PROGRAM = Path(__file__).with_name("teacher_program.py")
STEPS = 4
RUN = (*SELF, *NOISY, *CROPS, "ema.warmup=true", "optimizer.lr=0.01")


def steps_of(engine: Engine, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        losses.append(float(engine.step(inputs(step), 0.01).loss))
        engine.update_average(step + 1)
    return losses


def teacher_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in engine.model.teacher.encoder.named_parameters()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_is_the_average_and_resumes_bit_for_bit(ranks, tmp_path: Path, stage: int) -> None:
    stage_of = (f"deepspeed.zero_stage={stage}", "deepspeed.persistence_elements=0")
    engine = small_engine(ranks, [*RUN, *stage_of])
    student = dict(engine.model.encoder.video.named_parameters())
    names = set(student)
    expected = {name: value.double() for name, value in teacher_of(engine).items()}
    steps_of(engine, 0, 2)
    save_checkpoint(engine, tmp_path / "saves", TrainerState(2, {}), keep=1)
    middle = teacher_of(engine)
    losses = steps_of(engine, 2, STEPS)
    after = teacher_of(engine)
    assert set(after) == names
    load_checkpoint(engine, tmp_path / "saves")
    engine.refresh_teacher()
    for name, value in teacher_of(engine).items():
        assert torch.equal(value, middle[name]), name
    assert steps_of(engine, 2, STEPS) == losses
    for name, value in teacher_of(engine).items():
        assert torch.equal(value, after[name]), name
    assert any(not torch.allclose(value, expected[name].float()) for name, value in after.items())
    engine.close()


def test_every_stage_and_micro_batch_has_the_same_teacher(ranks) -> None:
    found = []
    for overrides in (
        ["deepspeed.zero_stage=0"],
        ["deepspeed.zero_stage=2", "training.micro_batch=5"],
    ):
        engine = small_engine(ranks, [*RUN, "optimizer.name=sgd", *overrides])
        losses = steps_of(engine, 0, STEPS)
        found.append((losses, teacher_of(engine)))
        engine.close()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_two_ranks_have_the_teacher_of_one(ranks, tmp_path: Path, run_on_ranks) -> None:
    engine = small_engine(ranks, [*RUN, "optimizer.name=sgd", "deepspeed.zero_stage=1"])
    steps_of(engine, 0, STEPS)
    alone = teacher_of(engine)
    engine.close()
    run_on_ranks(2, PROGRAM, tmp_path, timeout=600)
    for stage in range(4):
        both = [torch.load(tmp_path / f"teacher_{stage}_{rank}.pt") for rank in range(2)]
        for name, value in alone.items():
            assert torch.equal(both[0][name], both[1][name])
            torch.testing.assert_close(both[0][name], value, rtol=1e-5, atol=1e-6, msg=name)
