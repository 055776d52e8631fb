"""Which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from svilm_fast.train.config.schema import OptimizerConfig
from svilm_fast.train.engine.optimizer import build_optimizer, decays, parameter_groups


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(4, 4)
        self.group_tokens = nn.Parameter(torch.zeros(2, 4))
        self.position_time = nn.Parameter(torch.zeros(3, 4))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    model = Tower()
    decaying, exempt = parameter_groups(model, OptimizerConfig(weight_decay=0.5))
    assert [id(p) for p in decaying["params"]] == [id(model.tokens.weight)]
    assert decaying["weight_decay"] == 0.5
    assert exempt["weight_decay"] == 0.0
    assert len(exempt["params"]) == 6


def test_one_dimensional_parameters_decay_when_asked() -> None:
    model = Tower()
    config = OptimizerConfig(decay_one_dimensional=True)
    assert decays("norm.weight", model.norm.weight, config)
    assert not decays("log_scale", model.log_scale, config)


def test_a_parameter_sharded_by_zero_3_is_judged_by_its_full_shape() -> None:
    stub = nn.Parameter(torch.empty(0))
    stub.ds_shape = torch.Size([8, 8])
    assert decays("tokens.weight", stub, OptimizerConfig())


def test_the_configured_rule_is_built() -> None:
    sgd = build_optimizer(Tower(), OptimizerConfig(name="sgd", lr=0.5, momentum=0.75))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.75
    adamw = build_optimizer(Tower(), OptimizerConfig(betas=(0.5, 0.75), eps=1e-3))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["betas"], adamw.param_groups[0]["eps"]) == ((0.5, 0.75), 1e-3)
