"""AdamW or SGD over parameter groups, which differ in weight decay and learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svilm_fast.core.errors import ConfigError
from svilm_fast.models.layers import TowerLevel, place_of, tower_depths
from svilm_fast.train.config.schema import LayerDecayConfig, OptimizerConfig

RATE_FACTOR = "rate_factor"
OTHERS = "objectives"


def decays(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> bool:
    """Return whether weight decay applies to a parameter.

    name: dotted name. Only its last part is matched against `optimizer.no_decay`, so that a module
    called `tokens` does not exempt its matrices.
    """
    own_name = name.rpartition(".")[2]
    if any(word in own_name for word in config.no_decay):
        return False
    # ZeRO 3 replaces the parameter by an empty tensor and stores its shape in `ds_shape`.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) > 1 or config.decay_one_dimensional


def rate_factor(place: TowerLevel | None, config: LayerDecayConfig) -> float:
    """Return the factor of the learning rate at a level of a tower; 1 in heads and outside."""
    if place is None:
        return 1.0
    return getattr(config, place.tower) ** (place.depth + 1 - place.level)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and, with layer decay, by depth.

    Returns torch's parameter groups, each with a `name`, the names of its parameters and its factor
    of the learning rate. Raises ConfigError if no parameter is trainable.
    """
    by_layer = config.layer_decay.video < 1 or config.layer_decay.text < 1
    depths = tower_depths(name for name, _ in model.named_parameters())
    groups: dict[tuple[bool, TowerLevel | None], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place = place_of(name, depths) if by_layer else None
        decaying = decays(name, parameter, config)
        group = groups.setdefault(
            (decaying, place), _empty_group(decaying, place, by_layer, config)
        )
        group["params"].append(parameter)
        group["parameter_names"].append(name)
    if not groups:
        raise ConfigError(
            "there is nothing to train, because every parameter is frozen; unlock layers with "
            "video.lock or text.lock, or make a scale learnable"
        )
    decaying_first = sorted(groups, key=lambda key: not key[0])
    return [groups[key] for key in decaying_first]


def _empty_group(
    decaying: bool, place: TowerLevel | None, by_layer: bool, config: OptimizerConfig
) -> dict[str, Any]:
    name = "decay" if decaying else "no_decay"
    if by_layer:
        name = f"{OTHERS if place is None else place.label}.{name}"
    factor = rate_factor(place, config.layer_decay)
    return {
        "name": name,
        "params": [],
        "parameter_names": [],
        "weight_decay": config.weight_decay if decaying else 0.0,
        RATE_FACTOR: factor,
        "lr": config.lr * factor,
    }


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of every group to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_FACTOR]


def described_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the record of the groups for a checkpoint: names, parameters and rate factors."""
    return [
        {
            "name": group["name"],
            "parameters": [name.removeprefix("model.") for name in group["parameter_names"]],
            RATE_FACTOR: group[RATE_FACTOR],
        }
        for group in optimizer.param_groups
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build torch's optimizer; DeepSpeed's own would need a compiler."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
    on_gpu = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True if on_gpu else None
    )
