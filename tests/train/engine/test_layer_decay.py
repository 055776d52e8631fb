"""Layer-wise rate decay: exact rates per parameter, under ZeRO, along the schedule, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from svilm_fast.core.errors import CheckpointError
from svilm_fast.models.layers import place_of, tower_depths
from svilm_fast.objectives.svilm import SViLM, build_model
from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import OptimizerConfig
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.engine.optimizer import build_optimizer, set_learning_rate
from svilm_fast.train.engine.sharded_state import whole_parameter

TINY = (
    "model.preset=tiny",
    "video.depth=3",
    "video.width=8",
    "video.heads=2",
    "video.num_groups=2",
    "video.grouping.layers=[2,3]",
    "video.pool=class_token",
    "text.depth=2",
    "text.width=8",
    "text.heads=2",
    "text.vocab_size=300",
    "model.embed_dim=8",
)
# Levels of a tower of three layers; the head is level 4.
VIDEO_LEVELS = {
    "video.embedding.time_position": 0,
    "video.groups.tokens": 0,
    "video.class_token.tokens": 0,
    "video.blocks.0.mlp.expand.weight": 1,
    "video.blocks.2.mlp.expand.weight": 3,
    "video.grouping_blocks.2.assignment.query.weight": 2,
    "video.grouping_blocks.3.mixer.expand.bias": 3,
    "video.norm.weight": 4,
    "video.group_norm.bias": 4,
    "video.group_projection.weight": 4,
    "video.projection.weight": 4,
}
TEXT_LEVELS = {
    "text.embedding.tokens": 0,
    "text.blocks.1.attention.qkv.bias": 2,
    "text.projection.bias": 3,
}


@pytest.fixture(scope="module")
def model() -> SViLM:
    return build_model(load_config(None, TINY))


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_every_parameter_has_its_rate_and_its_decay(model: SViLM) -> None:
    config = OptimizerConfig(layer_decay={"video": 0.5, "text": 0.25}, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.8)
    found = rates(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, level in VIDEO_LEVELS.items():
        assert found[f"encoder.{name}"][0] == pytest.approx(0.8 * 0.5 ** (4 - level)), name
    for name, level in TEXT_LEVELS.items():
        assert found[f"encoder.{name}"][0] == pytest.approx(0.8 * 0.25 ** (3 - level)), name
    scales = [name for name in found if name.startswith("objectives.")]
    assert scales
    assert all(found[name] == (0.8, 0.0) for name in scales)
    assert found["encoder.video.blocks.0.mlp.expand.weight"][1] == 0.1
    assert found["encoder.video.blocks.0.mlp.expand.bias"][1] == 0.0
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    assert {"video.embedding.decay", "video.layer_03.no_decay", "text.head.decay"} <= set(names)


def test_without_layer_decay_there_are_two_groups(model: SViLM) -> None:
    optimizer = build_optimizer(model, OptimizerConfig())
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]


def test_a_part_that_nobody_placed_is_an_error() -> None:
    depths = tower_depths(["encoder.video.blocks.4.mlp.expand.weight"])
    assert depths == {"video": 5}
    with pytest.raises(ValueError, match=r"adapter\.weight' belongs to no known part"):
        place_of("encoder.video.adapter.weight", depths)
    assert place_of("objectives.contrast.scale.logarithm.scale_value", depths) is None


class Towers(nn.Module):
    """Two towers of one block each, in the names of the real ones; the loss is their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                tower: nn.ModuleDict(
                    {
                        "embedding": nn.Linear(3, 3, bias=False),
                        "blocks": nn.ModuleList([nn.Linear(3, 3, bias=False)]),
                        "projection": nn.Linear(3, 3, bias=False),
                    }
                )
                for tower in ("video", "text")
            }
        )

    def forward(self, inputs: Tensor):
        from svilm_fast.objectives.total import StepOutput

        total = inputs.new_zeros(())
        for tower in self.encoder.values():
            for layer in (tower["embedding"], tower["blocks"][0], tower["projection"]):
                total = total + layer(inputs).sum()
        return StepOutput(total, {})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_steps_at_each_layers_rate_and_resumes(
    make_engine: Callable, ranks, tmp_path: Path, stage: int
) -> None:
    settings = (
        f"deepspeed.zero_stage={stage}",
        "deepspeed.persistence_elements=0",
        "training.gradient_clipping=0",
        "optimizer.name=sgd",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "optimizer.layer_decay.video=0.5",
        "optimizer.layer_decay.text=0.1",
    )
    base = make_engine(*settings).config
    engine = start_engine(Towers(), base, ranks)

    def weights() -> dict[str, Tensor]:
        return {
            name: whole_parameter(engine, parameter).detach().clone()
            for name, parameter in engine.model.named_parameters()
        }

    wanted = {
        "encoder.video.embedding.weight": 0.25,
        "encoder.video.blocks.0.weight": 0.5,
        "encoder.video.projection.weight": 1.0,
        "encoder.text.embedding.weight": 0.01,
        "encoder.text.blocks.0.weight": 0.1,
        "encoder.text.projection.weight": 1.0,
    }
    inputs = torch.ones(1, 3)
    for rate in (0.5, 0.125):
        before = weights()
        engine.step(inputs, rate)
        for name, value in weights().items():
            moved = before[name] - value
            torch.testing.assert_close(moved, torch.full_like(moved, rate * wanted[name]))
    save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    state = load_checkpoint(engine, tmp_path)
    assert state is not None
    before = weights()
    engine.step(inputs, 0.25)
    for name, value in weights().items():
        moved = before[name] - value
        torch.testing.assert_close(moved, torch.full_like(moved, 0.25 * wanted[name]))
    engine.close()
    other = base.model_copy(deep=True)
    other.optimizer.layer_decay.video = 0.75
    changed = start_engine(Towers(), other, ranks)
    with pytest.raises(CheckpointError, match=r"video\.\w+\.decay at 0\.25.*keep.*layer_decay"):
        load_checkpoint(changed, tmp_path)
    changed.close()
