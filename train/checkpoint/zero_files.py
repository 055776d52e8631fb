"""Merges the shards of a DeepSpeed checkpoint without ranks, without a GPU and without DeepSpeed.

DeepSpeed 0.19 pickles its sharded files. torch's restricted unpickler reads them, with stand-ins
for the few classes of DeepSpeed that they contain. `trainer_state.json` lists the parameters of
a shard in their order.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svilm_fast.core.errors import CheckpointError
from svilm_fast.core.text import counted
from svilm_fast.train.checkpoint.portable_files import MOMENT_NAMES, PortableState, describe_state
from svilm_fast.train.checkpoint.saved_state import read_data_state, read_trainer_state
from svilm_fast.train.checkpoint.store import problem_with
from svilm_fast.train.folder.manifest import read_manifest
from svilm_fast.train.folder.trust import load_tensors_only, read_tensors, understood

FOREIGN = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
PREFIX = "model."  # DeepSpeed's engine wraps the model in `LossModule`

Shards = list[list[Tensor]]  # of every rank, in the order of the optimizer's groups


class Foreign:
    """Stand-in for an object of DeepSpeed whose content is not needed."""

    def __init__(self, *values: Any) -> None:
        self.values = values


def read_pickled(path: Path) -> dict[str, Any]:
    """Read one of DeepSpeed's files as tensors and plain values only."""
    with torch.serialization.safe_globals([(Foreign, name) for name in FOREIGN]):
        return load_tensors_only(path, map_location="cpu", mmap=True)


def read_checkpoint(folder: Path) -> PortableState:
    """Verify a checkpoint of any ZeRO stage and rank count, and return it unsharded.

    Raises CheckpointError if it is damaged, incomplete or not written by a run.
    """
    reason = problem_with(folder)
    if reason is not None:
        raise CheckpointError(f"{folder} does not pass verification: {reason}")
    with understood(folder):
        return _read(folder, read_trainer_state(folder))


def _read(folder: Path, described: dict[str, Any]) -> PortableState:
    shapes: dict[str, list[int]] = described["parameters"]
    models = [read_pickled(path) for path in _ranked(folder, r"_model_states\.pt")]
    module = {name.removeprefix(PREFIX): value for name, value in models[0]["module"].items()}
    absent = sorted(set(shapes) - set(module))
    if absent:
        raise CheckpointError(f"{folder}: the model's state lacks the parameter {absent[0]!r}")
    saved = _read_shards(folder, described, module)
    weights = {name: value.clone() for name, value in module.items() if name not in shapes}
    weights |= _locked(models, module, shapes, saved.groups)
    weights |= saved.joined(saved.masters)
    missing = sorted(set(shapes) - set(weights))
    if missing:
        raise CheckpointError(f"{folder} lacks the parameter {missing[0]!r}")
    moments: dict[str, Tensor] = {}
    for moment in MOMENT_NAMES[described["optimizer"]]:
        if all(moment in state for state in saved.states[0].values()) and saved.states[0]:
            found = [[state[key][moment] for key in sorted(state)] for state in saved.states]
            moments |= {f"{moment}/{name}": value for name, value in saved.joined(found).items()}
    average = None
    if described["ema"] is not None:
        ranks = [read_tensors(path) for path in _ranked(folder, r"ema_rank_\d+\.safetensors")]
        average = saved.joined([[shards[key] for key in sorted(shards)] for shards in ranks])
    updates = next((state["step"] for state in saved.states[0].values() if "step" in state), 0)
    state = describe_state(
        step=int(described["step"]),
        optimizer=described["optimizer"],
        updates=int(updates),
        data=read_data_state(folder / "data_rank_00000.json"),
        parameters=shapes,
        ema=described["ema"],
    )
    return PortableState(weights, moments, average, state)


@dataclass
class SavedShards:
    """The shards of the trained parameters, and how to join them.

    masters: fp32 weights. states: of the optimizer, by number of the shard. groups: parameter names
    of each group. paddings: elements after each parameter in a flat group.
    """

    stage: int
    groups: list[list[str]]
    shapes: dict[str, list[int]]
    masters: Shards
    states: list[dict[int, dict[str, Tensor]]]
    paddings: list[list[int]] | None = None

    def joined(self, shards: Shards) -> dict[str, Tensor]:
        """Return whole fp32 tensors by parameter name."""
        rule = {0: self._whole, 3: self._by_parameter}.get(self.stage, self._by_group)
        return {
            name: values.float().reshape(self.shapes[name]).clone() for name, values in rule(shards)
        }

    def _whole(self, shards: Shards) -> Iterator[tuple[str, Tensor]]:
        """Stage 0: every rank holds all parameters whole."""
        yield from zip(itertools.chain(*self.groups), shards[0], strict=True)

    def _by_group(self, shards: Shards) -> Iterator[tuple[str, Tensor]]:
        """Stages 1 and 2: a group is one flat tensor, split evenly over the ranks."""
        for number, names in enumerate(self.groups):
            flat = torch.cat([rank[number].flatten() for rank in shards])
            start = 0
            for place, name in enumerate(names):
                count = math.prod(self.shapes[name])
                yield name, flat[start : start + count]
                start += count + (self.paddings[number][place] if self.paddings else 0)

    def _by_parameter(self, shards: Shards) -> Iterator[tuple[str, Tensor]]:
        """Stage 3: each parameter is split evenly; a rank concatenates its parts of all of them."""
        flat = [torch.cat([part.flatten() for part in rank]) for rank in shards]
        start = 0
        for name in itertools.chain(*self.groups):
            count = math.prod(self.shapes[name])
            share = -(-count // len(flat))
            yield name, torch.cat([rank[start : start + share] for rank in flat])[:count]
            start += share


def _read_shards(folder: Path, described: dict[str, Any], module: dict[str, Tensor]) -> SavedShards:
    stage = described["zero_stage"]
    groups = [group["parameters"] for group in described["groups"]]
    shapes = described["parameters"]
    if stage == 0:
        (path,) = _ranked(folder, r"_model_states\.pt")
        masters = [[module[name] for group in groups for name in group]]
        return SavedShards(0, groups, shapes, masters, [read_pickled(path)["optimizer"]["state"]])
    paths = _ranked(folder, r"_optim_states\.pt")
    if len(paths) != described["world_size"]:
        raise CheckpointError(
            f"{folder} holds the optimizer state of {counted(len(paths), 'rank')}, expected "
            f"{described['world_size']}"
        )
    ranks = [read_pickled(path)["optimizer_state_dict"] for path in paths]
    if stage == 3:
        masters = [rank["fp32_flat_groups"] for rank in ranks]
        states = [rank["optimizer_state_dict"]["state"] for rank in ranks]
        return SavedShards(3, groups, shapes, masters, states)
    masters = [rank["single_partition_of_fp32_groups"] for rank in ranks]
    states = [rank["base_optimizer_state"]["state"] for rank in ranks]
    paddings = ranks[0].get("param_alignment_paddings")
    return SavedShards(stage, groups, shapes, masters, states, paddings)


def _locked(
    models: list[dict[str, Any]],
    module: dict[str, Tensor],
    shapes: dict[str, list[int]],
    groups: list[list[str]],
) -> dict[str, Tensor]:
    """Return the frozen parameters, of which ZeRO 3 keeps a part on every rank."""
    found: dict[str, Tensor] = {}
    for name in set(shapes) - set(itertools.chain(*groups)):
        value = module[name]
        if list(value.shape) != shapes[name]:
            parts = [model["frozen_param_fragments"][PREFIX + name] for model in models]
            count = math.prod(shapes[name])
            value = torch.cat([part.flatten() for part in parts])[:count].view(shapes[name])
        found[name] = value.float().clone()
    return found


def _ranked(folder: Path, kind: str) -> list[Path]:
    """Return the listed files whose names match `kind`, in the order of their ranks."""
    names = [name for name in read_manifest(folder) if re.fullmatch(rf"[^/]*{kind}", name)]
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return [folder / name for name in ordered]
