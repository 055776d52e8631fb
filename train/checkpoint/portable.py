"""A run and its portable checkpoint: gathers the engine's state, and loads it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svilm_fast.core.errors import CheckpointError
from svilm_fast.tasks.base import InitialWeights
from svilm_fast.train.checkpoint.partial import WeightsReport, compare_weights
from svilm_fast.train.checkpoint.portable_files import (
    AVERAGE,
    MOMENT_NAMES,
    MOMENTS,
    WEIGHTS,
    PortableState,
    check_portable,
    describe_state,
    read_weights,
    write_portable,
)
from svilm_fast.train.checkpoint.rank_state import described_average
from svilm_fast.train.checkpoint.store import check_shapes, parameter_shapes
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.engine.sharded_state import (
    create_moments,
    link_moments,
    refresh_parameters,
    release_parameters,
    torch_optimizer,
    whole_moment,
    whole_parameter,
    write_shard,
)
from svilm_fast.train.folder.trust import opened_tensors, understood


def save_portable(
    engine: Engine, folder: Path, step: int, data: dict[str, Any], copies: Iterable[Path] = ()
) -> None:
    """Gather fp32 weights, moments and the average on rank 0, and write the checkpoint there.

    Every rank must call it: under ZeRO one collective gathers each tensor.
    """
    ranks = engine.ranks
    names = MOMENT_NAMES[engine.config.optimizer.name]
    link_moments(engine)
    weights = dict(_gathered(engine, whole_parameter))
    moments: dict[str, Tensor] = {}
    for moment in names:
        found = _gathered(engine, partial(whole_moment, name=moment), trained_only=True)
        moments |= {f"{moment}/{name}": value for name, value in found}
    average: dict[str, Tensor] | None = None
    described = described_average(engine)
    if described is not None:
        assert engine.ema is not None
        with engine.ema.applied():
            average = dict(_gathered(engine, whole_parameter, trained_only=True))

    def write() -> None:
        buffers = persistent_buffers(engine.model)
        whole = weights | {name: buffer.detach().cpu().contiguous() for name, buffer in buffers}
        state = describe_state(
            step=step,
            optimizer=engine.config.optimizer.name,
            updates=optimizer_updates(engine),
            data=data,
            parameters=parameter_shapes(engine.model),
            ema=described,
        )
        write_portable(folder, PortableState(whole, moments, average, state), copies)

    ranks.from_first(write)


def _gathered(
    engine: Engine,
    gather: Callable[[Engine, nn.Parameter], Tensor | None],
    *,
    trained_only: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Gather a tensor of every parameter; rank 0 yields it on the CPU, the others yield nothing."""
    for name, parameter in engine.model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        whole = gather(engine, parameter)
        if engine.ranks.is_first and whole is not None:
            yield name, whole.detach().to("cpu", torch.float32, copy=True).contiguous()


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of the state dict."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name not in parameters and isinstance(value, Tensor):
            yield name, value


def optimizer_updates(engine: Engine) -> int:
    """Return the optimizer's number of updates, which AdamW's bias correction uses."""
    for state in torch_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def load_weights(model: nn.Module, folder: Path, *, average: bool = False) -> dict[str, Any]:
    """Fill `model` with the weights of a portable checkpoint and return its described state.

    average: load the average of the weights for the parameters that have one. Raises
    CheckpointError if there is no average, or with the first parameter whose shape differs.
    """
    described = check_portable(folder)
    check_shapes(described["parameters"], model, folder)
    with understood(folder / WEIGHTS):
        model.load_state_dict(read_weights(folder, average=average))
    return described


def load_weights_in_part(
    model: nn.Module, folder: Path, allowed: InitialWeights, *, average: bool = False
) -> WeightsReport:
    """Fill `model` with the weights of a portable checkpoint that have its names and shapes.

    average: as in `load_weights`. Raises CheckpointError naming mismatches that `allowed` does not
    allow.
    """
    check_portable(folder)
    weights, own = read_weights(folder, average=average), model.state_dict()
    saved, wanted = (
        {name: list(value.shape) for name, value in tensors.items()} for tensors in (weights, own)
    )
    report = compare_weights(saved, wanted, allowed, folder)
    with understood(folder / WEIGHTS):
        taken = {name: weights[name] for name in report.taken}
        model.load_state_dict({**own, **taken})
    return report


def load_masters(engine: Engine, folder: Path, *, average: bool = False) -> None:
    """Load fp32 masters into an engine with bf16 parameters, whose cast rounded the weights.

    Call `load_weights` first. average: as there. A parameter of another shape keeps its initial
    value.
    """
    if engine.config.training.precision != "bf16":
        return
    release_parameters(engine)
    for file in (WEIGHTS, AVERAGE) if average else (WEIGHTS,):
        with opened_tensors(folder / file) as weights:
            _write_shards(engine, set(weights.keys()), weights.get_tensor)
    refresh_parameters(engine)
    if engine.ema is not None:
        engine.ema.restart(0)


def write_masters(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """The same as `load_masters` for whole weights in memory, by name; none: nothing to do."""
    if not weights:
        return
    release_parameters(engine)
    _write_shards(engine, set(weights), weights.__getitem__)
    refresh_parameters(engine)
    if engine.ema is not None:
        engine.ema.restart(0)


def _write_shards(engine: Engine, present: set[str], read: Callable[[str], Tensor]) -> None:
    for name, parameter in engine.model.named_parameters():
        if parameter.requires_grad and name in present:
            value = read(name).to(engine.ranks.device)
            if value.shape != getattr(parameter, "ds_shape", parameter.shape):
                continue
            write_shard(engine, parameter, value)


def load_moments(engine: Engine, folder: Path) -> None:
    """Load the moments of a portable checkpoint into an engine of any stage and rank count.

    Weights must be loaded before the engine is built. A parameter that was frozen when the
    checkpoint was written starts with zero moments. Raises CheckpointError if the checkpoint is
    from another optimizer.
    """
    described = check_portable(folder)
    rule = engine.config.optimizer.name
    if described["optimizer"] != rule:
        raise CheckpointError(
            f"{folder} holds the moments of {described['optimizer']}, but this run uses {rule}; "
            f"set optimizer.name={described['optimizer']}"
        )
    with opened_tensors(folder / MOMENTS) as moments:
        present = set(moments.keys())
        if not present:
            return
        names = [name for name, _ in engine.model.named_parameters()]
        known = {f"{moment}/{name}" for moment in MOMENT_NAMES[rule] for name in names}
        if present - known:
            raise CheckpointError(
                f"{folder / MOMENTS} holds {min(present - known)!r}, an optimizer moment that "
                "belongs to no parameter"
            )
        if engine.zero_stage > 0:
            create_moments(engine, MOMENT_NAMES[rule])
        for name, parameter in engine.model.named_parameters():
            for moment in MOMENT_NAMES[rule] if parameter.requires_grad else ():
                key = f"{moment}/{name}"
                if key in present:
                    value = moments.get_tensor(key).to(engine.ranks.device)
                elif engine.zero_stage == 0:
                    value = torch.zeros_like(parameter)
                else:
                    continue
                write_shard(engine, parameter, value, moment)
    if rule == "adamw":
        # The fused optimizer, used on GPUs, keeps its step count on the device.
        device = engine.ranks.device if engine.ranks.device.type == "cuda" else None
        for state in torch_optimizer(engine).state.values():
            state["step"] = torch.tensor(
                float(described["updates"]), dtype=torch.float32, device=device
            )


def load_average(engine: Engine, folder: Path) -> None:
    """Continue the average of a portable checkpoint, or start one from the engine's weights."""
    described = check_portable(folder)
    if engine.ema is None:
        return
    if described["ema"] is None:
        engine.ema.restart(int(described["step"]))
        return
    with opened_tensors(folder / AVERAGE) as tensors:
        present = set(tensors.keys())
        engine.ema.load_whole(
            lambda name: tensors.get_tensor(name) if name in present else None,
            int(described["ema"]["updates"]),
        )
