"""A step through DeepSpeed: equal to plain torch in every stage, and never poisoned."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import Tensor, nn

from svilm_fast.objectives.scale import Scalar
from svilm_fast.objectives.total import StepOutput
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.engine.sharded_state import whole_parameter

STAGES = [0, 1, 2, 3]


def weights_of(engine: Engine) -> dict[str, Tensor]:
    return {
        name: whole_parameter(engine, parameter).detach().clone()
        for name, parameter in engine.model.named_parameters()
    }


class ScaledModel(nn.Module):
    """Its loss is one learnable scalar near the start of a contrastive scale."""

    def __init__(self) -> None:
        super().__init__()
        self.logarithm = Scalar(2.66)

    def forward(self, inputs: Tensor) -> StepOutput:
        return StepOutput(self.logarithm() + 0 * inputs.float().sum(), {})


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_steps_like_plain_torch(make_engine, batch_of, stage: int, rule: str) -> None:
    engine = make_engine(
        f"deepspeed.zero_stage={stage}",
        f"optimizer.name={rule}",
        "deepspeed.persistence_elements=0",
        "training.gradient_clipping=0.05",
        dropout=0.0,
    )
    reference = make_engine("deepspeed.zero_stage=0", dropout=0.0).model
    reference = copy.deepcopy(reference)
    optimizer = build_optimizer(reference, engine.config.optimizer)
    for step in range(4):
        rate = 0.02 * (step + 1)
        result = engine.step(batch_of(step), rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        reference(batch_of(step)).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        optimizer.step()
        assert result.applied
        assert result.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    for name, trained in weights_of(engine).items():
        wanted = dict(reference.named_parameters())[name]
        torch.testing.assert_close(trained, wanted.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_and_says_so(
    make_engine, batch_of, stage: int, precision: str, poison: str
) -> None:
    engine = make_engine(f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
    engine.step(batch_of(0), 0.01)
    before = weights_of(engine)
    if poison == "loss":
        bad = batch_of(1)
        bad["features"][0, 0] = float("nan")
        result = engine.step(bad, 0.01)
    else:
        handle = engine.model.log_scale.register_hook(lambda gradient: gradient * float("inf"))
        result = engine.step(batch_of(1), 0.01)
        handle.remove()
    assert not result.applied
    for name, value in weights_of(engine).items():
        assert torch.equal(value, before[name])
    assert engine.step(batch_of(2), 0.01).applied
    assert all(torch.isfinite(value).all() for value in weights_of(engine).values())


def test_bf16_parameters_still_learn_in_small_steps(make_engine, batch_of) -> None:
    engine = make_engine("training.precision=bf16", "deepspeed.zero_stage=1", dropout=0.0)
    before = weights_of(engine)
    assert engine.model.log_scale.dtype == torch.bfloat16
    features = batch_of(0)
    half = {name: value.bfloat16() for name, value in features.items()}
    engine.step(half, 1e-4)
    moved = weights_of(engine)["log_scale"] - before["log_scale"]
    assert float(moved.abs()) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_scale_step_of_1e_4_reaches_forward_with_bf16_parameters(
    make_engine, ranks, stage: int
) -> None:
    torch.manual_seed(0)
    config = make_engine(
        "training.precision=bf16",
        f"deepspeed.zero_stage={stage}",
        "training.gradient_clipping=0",
        "optimizer.name=sgd",
        "optimizer.momentum=0",
    ).config
    engine = start_engine(ScaledModel(), config, ranks)
    inputs = torch.ones(1, dtype=torch.bfloat16)
    first = float(engine.step(inputs, 1e-4).loss)
    second = float(engine.step(inputs, 1e-4).loss)
    assert second - first == pytest.approx(-1e-4, rel=1e-2)
    engine.close()


def test_a_pending_signal_reaches_the_result(make_engine, batch_of) -> None:
    engine = make_engine()
    assert engine.step(batch_of(0), 0.01).stop_signal == 0
    assert engine.step(batch_of(1), 0.01, signal=15).stop_signal == 15


def test_deepspeed_never_compiles_on_a_cpu(ranks) -> None:
    import deepspeed

    assert deepspeed.ops.__compatible_ops__ == {}
    assert deepspeed.comm.comm.cdb.shm_comm_op is None
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_means_over_ranks_keep_their_names(ranks) -> None:
    values = {"b": torch.tensor(2.0), "a": torch.tensor(0.5)}
    assert ranks.mean(values) == {"a": 0.5, "b": 2.0}
    assert ranks.mean({}) == {}


def test_scalar_parameters_are_refused_by_name(ranks, make_engine) -> None:
    model = nn.Module()
    model.log_scale = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"'log_scale' is 0-dim.*shape \[1\]"):
        start_engine(model, make_engine().config, ranks)
