"""AdamW or SGD over two parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svilm_fast.train.config import OptimizerConfig


def decays(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> bool:
    """Whether weight decay applies to a parameter of the model.

    `name` is the dotted name; only its last part is searched for the words of
    `optimizer.no_decay`, so that a module called `tokens` does not exempt its matrices.
    """
    own_name = name.rpartition(".")[2]
    if any(word in own_name for word in config.no_decay):
        return False
    # ZeRO 3 leaves an empty stub in place of the parameter and keeps its shape aside.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1 or config.decay_one_dimensional


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters into a decaying and an exempt group, in model order."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[decays(name, parameter, config)].append(parameter)
    return [
        {"params": members, "weight_decay": config.weight_decay if decaying else 0.0}
        for decaying, members in groups.items()
        if members
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build torch's optimizer; DeepSpeed's own would have to be compiled first."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
    on_gpu = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True if on_gpu else None
    )
