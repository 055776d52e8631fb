"""Access to fp32 masters and moments of a parameter, whether sharded or whole.

This module alone depends on where DeepSpeed 0.19 stores them. Under ZeRO 1 and 2 a rank holds one
flat fp32 tensor per parameter group, under ZeRO 3 one per sub-group. In stage 0 the parameters
themselves are the masters, whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svilm_fast.train.engine.scalars import MasterScalars
from svilm_fast.train.ranks.process_group import Ranks


class ShardedEngine(Protocol):
    """The part of `Engine` that this module uses.

    deepspeed: DeepSpeed's engine. scalars: copies to refresh when masters change, or None.
    """

    deepspeed: Any
    ranks: Ranks

    @property
    def scalars(self) -> MasterScalars | None: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def zero_stage(self) -> int: ...


def torch_optimizer(engine: ShardedEngine) -> torch.optim.Optimizer:
    """Return the optimizer that updates the masters."""
    outer = engine.deepspeed.optimizer
    return outer if engine.zero_stage == 0 else outer.optimizer


def flat_masters(engine: ShardedEngine) -> list[Tensor]:
    """Return the flat fp32 tensors that ZeRO passes to the inner optimizer as parameters."""
    outer = engine.deepspeed.optimizer
    if engine.zero_stage == 3:
        return outer.fp32_partitioned_groups_flat
    # DeepSpeed has another class for ZeRO 1 with bf16 parameters, with another name for them.
    if hasattr(outer, "fp32_groups_flat_partition"):
        return outer.fp32_groups_flat_partition
    return outer.single_partition_of_fp32_groups


def clear_padding(engine: ShardedEngine) -> None:
    """Zero the padding with which ZeRO 3 makes the shards of a parameter equally large.

    DeepSpeed 0.19 leaves it uninitialised. Checkpoints would contain arbitrary bytes of memory, and
    the files of two equal runs would differ.
    """
    if engine.zero_stage != 3:
        return
    outer, rank = engine.deepspeed.optimizer, engine.ranks.rank
    for flat, parameters in zip(outer.fp32_partitioned_groups_flat, outer.fp16_groups, strict=True):
        start = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            own = min(max(parameter.ds_numel - rank * size, 0), size)
            parameter.ds_tensor[own:].zero_()
            flat.data[start + own : start + size].zero_()
            start += size


def masters(engine: ShardedEngine) -> list[Tensor]:
    """Return this rank's fp32 masters of all trained parameters, in the optimizer's order."""
    if engine.zero_stage == 0:
        groups = engine.deepspeed.optimizer.param_groups
        return [parameter.data for group in groups for parameter in group["params"]]
    return [partition.data for partition in flat_masters(engine)]


def release_parameters(engine: ShardedEngine) -> None:
    """Release the parameters that ZeRO 3 has gathered, before their masters change."""
    if engine.zero_stage == 3:
        engine.deepspeed.optimizer._partition_all_parameters()


def refresh_parameters(engine: ShardedEngine) -> None:
    """Update the model's parameters from changed masters; every rank must call it."""
    outer = engine.deepspeed.optimizer
    if engine.zero_stage in (1, 2):
        outer.update_lp_params()
    elif engine.zero_stage == 3:
        for sub_group in range(len(outer.fp32_partitioned_groups_flat)):
            outer._reassign_or_swap_out_partitioned_parameters(sub_group)
        if outer.persistent_parameters:
            outer.persistent_parameters[0].all_gather(outer.persistent_parameters)
    if engine.scalars is not None:
        engine.scalars.refresh()


def whole_parameters(engine: ShardedEngine, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of a module's parameters as forward sees them; ZeRO 3 gathers each."""
    from deepspeed.runtime.zero import GatheredParameters

    for name, parameter in module.named_parameters():
        with GatheredParameters([parameter], enabled=engine.zero_stage == 3):
            yield name, parameter.detach()


def whole_parameter(engine: ShardedEngine, parameter: nn.Parameter) -> Tensor:
    """Return a parameter's fp32 master in its own shape; a collective under ZeRO.

    A frozen parameter has no master: the model's value is returned.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.zero_stage == 0:
        return parameter.detach()
    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    if engine.zero_stage < 3:
        return parameter.detach()
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def whole_moment(engine: ShardedEngine, parameter: nn.Parameter, name: str) -> Tensor | None:
    """Return a moment in its parameter's shape, or None before the first update."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = torch_optimizer(engine).state
    if engine.zero_stage == 0:
        return state.get(parameter, {}).get(name)
    if not state:
        return None
    return safe_get_full_optimizer_state(parameter, name)


def write_shard(
    engine: ShardedEngine, parameter: Any, value: Tensor, moment: str | None = None
) -> None:
    """Write this rank's shard of an unsharded fp32 value into a parameter's master or moment."""
    outer = engine.deepspeed.optimizer
    if engine.zero_stage == 0:
        if moment is None:
            parameter.data.copy_(value)
        else:
            torch_optimizer(engine).state[parameter][moment] = value
    elif engine.zero_stage == 3:
        share, _ = outer._get_fp32_opt_state_partition(parameter, False, moment)
        # DeepSpeed's own setter fails if the size is not divisible by the number of ranks, because
        # the last shard is padded.
        start = min(share.numel() * outer._get_param_partition_rank(parameter), value.numel())
        own = value.flatten()[start : start + share.numel()]
        share.data[: own.numel()].copy_(own)
    else:
        parameter.set_full_hp_param(value, moment)


def create_moments(engine: ShardedEngine, names: tuple[str, ...]) -> None:
    """Create zero moments for ZeRO's flat partitions, before the first update would."""
    state = torch_optimizer(engine).state
    for partition in flat_masters(engine):
        for name in names:
            state[partition][name] = torch.zeros_like(partition)
    link_moments(engine)


def link_moments(engine: ShardedEngine) -> None:
    """Link the moments of every parameter group to its parameters under ZeRO 1 and 2.

    DeepSpeed 0.19.8 links them only once, after the first update of the first group, when the other
    groups have no moments yet.
    """
    if engine.zero_stage in (1, 2) and torch_optimizer(engine).state:
        outer = engine.deepspeed.optimizer
        outer._hp_optimizer_states_linked = False
        outer._lazy_init_hp_params_optimizer_state()
