"""The portable checkpoint: safetensors and JSON that any ZeRO stage and rank count can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svilm_fast.train.checkpoint import (
    MANIFEST,
    check_shapes,
    parameter_shapes,
    problem_with,
    write_manifest,
)
from svilm_fast.train.engine import Engine
from svilm_fast.train.errors import CheckpointError
from svilm_fast.train.files import write_json

WEIGHTS = "model.safetensors"
MOMENTS = "optimizer.safetensors"
STATE = "state.json"
MOMENT_NAMES = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def _whole_parameter(engine: Engine, parameter: nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.zero_stage == 0:
        return parameter.detach()
    return safe_get_full_fp32_param(parameter)


def _whole_moment(engine: Engine, parameter: nn.Parameter, name: str) -> Tensor | None:
    """Return a moment in its parameter's shape, or None before the first update."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = _torch_optimizer(engine).state
    if engine.zero_stage == 0:
        return state.get(parameter, {}).get(name)
    if not state:
        return None
    return safe_get_full_optimizer_state(parameter, name)


def _create_moments(engine: Engine, names: tuple[str, ...]) -> None:
    """Give ZeRO's flat partitions zero moments, which they otherwise get at the first update."""
    outer = engine.deepspeed.optimizer
    third = engine.zero_stage == 3
    flat = outer.fp32_partitioned_groups_flat if third else outer.single_partition_of_fp32_groups
    for partition in flat:
        for name in names:
            outer.optimizer.state[partition][name] = torch.zeros_like(partition)
    _link_moments(engine)


def _link_moments(engine: Engine) -> None:
    """Let ZeRO 1 and 2 find the moments of every parameter group.

    DeepSpeed 0.19.8 links them once, after the first update of the first group, when the other
    groups have none yet; those stay without.
    """
    if engine.zero_stage in (1, 2) and _torch_optimizer(engine).state:
        outer = engine.deepspeed.optimizer
        outer._hp_optimizer_states_linked = False
        outer._lazy_init_hp_params_optimizer_state()


def _to_file(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def save_portable(engine: Engine, folder: Path, step: int, data: dict[str, Any]) -> None:
    """Gather fp32 weights and moments on rank 0 and write them beside the state.

    Every rank must call it: under ZeRO each tensor is put together by a collective. The folder
    appears under its name only when it is complete.
    """
    ranks = engine.ranks
    names = MOMENT_NAMES[engine.config.optimizer.name]
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    _link_moments(engine)
    for name, parameter in engine.model.named_parameters():
        whole = _whole_parameter(engine, parameter)
        if ranks.is_first:
            weights[name] = _to_file(whole)
        for moment_name in names if parameter.requires_grad else ():
            moment = _whole_moment(engine, parameter, moment_name)
            if ranks.is_first and moment is not None:
                moments[f"{moment_name}/{name}"] = _to_file(moment)
    if ranks.is_first:
        for name, buffer in persistent_buffers(engine.model):
            weights[name] = buffer.detach().cpu().contiguous()
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / WEIGHTS)
        save_file(moments, temporary / MOMENTS)
        described = {
            "format": 1,
            "step": step,
            "optimizer": engine.config.optimizer.name,
            "updates": optimizer_updates(engine),
            "data": data,
            "parameters": parameter_shapes(engine.model),
        }
        write_json(temporary / STATE, described)
        write_manifest(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    ranks.barrier()


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that belong to the state dict."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name not in parameters and isinstance(value, Tensor):
            yield name, value


def _torch_optimizer(engine: Engine) -> torch.optim.Optimizer:
    outer = engine.deepspeed.optimizer
    return outer if engine.zero_stage == 0 else outer.optimizer


def optimizer_updates(engine: Engine) -> int:
    """Return how many updates the optimizer has counted (AdamW's bias correction)."""
    for state in _torch_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def check_portable(folder: Path) -> dict[str, Any]:
    """Return the described state of a verified portable checkpoint, or raise CheckpointError."""
    if not (folder / STATE).is_file() or not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} holds no portable checkpoint; a run writes it at its end, and "
            "`--resume` lets a stopped run get there"
        )
    reason = problem_with(folder)
    if reason is not None:
        raise CheckpointError(f"{folder} cannot be trusted: {reason}")
    return json.loads((folder / STATE).read_text())


def load_weights(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Fill `model` with the weights of a portable checkpoint and return its described state.

    Raises CheckpointError naming the first parameter whose shape differs.
    """
    described = check_portable(folder)
    check_shapes(described["parameters"], model, folder)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return described


def load_moments(engine: Engine, folder: Path) -> None:
    """Give the engine the moments of a portable checkpoint, whatever its stage and rank count.

    Weights must have been loaded before the engine was built. Raises CheckpointError when the
    checkpoint came from another optimizer.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    described = check_portable(folder)
    name = engine.config.optimizer.name
    if described["optimizer"] != name:
        raise CheckpointError(
            f"{folder} holds the moments of {described['optimizer']}, this run uses {name}; "
            f"set optimizer.name={described['optimizer']}"
        )
    moments = load_file(folder / MOMENTS)
    if not moments:
        return
    inner = _torch_optimizer(engine)
    if engine.zero_stage > 0:
        _create_moments(engine, MOMENT_NAMES[name])
    for parameter_name, parameter in engine.model.named_parameters():
        for moment_name in MOMENT_NAMES[name]:
            moment = moments.get(f"{moment_name}/{parameter_name}")
            if moment is None:
                continue
            moment = moment.to(engine.ranks.device)
            if engine.zero_stage == 0:
                inner.state[parameter][moment_name] = moment
            else:
                safe_set_full_optimizer_state(parameter, moment, moment_name)
    if name == "adamw":
        for state in inner.state.values():
            state["step"] = torch.tensor(float(described["updates"]), dtype=torch.float32)
