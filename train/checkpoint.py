"""DeepSpeed checkpoints that are committed in two phases and verified before they are read.

DeepSpeed's rank 0 writes `latest` when its own files are done, before the other ranks wrote theirs:
a rank that dies in between leaves `latest` on an incomplete checkpoint, and the next start then
loads half of it or begins from scratch without a word. Here all ranks write first; after a barrier
rank 0 writes a manifest with the SHA-256 of every file, then `latest`. A checkpoint without a valid
manifest does not exist.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from svilm_fast.train.disk import bytes_in, check_space, explained
from svilm_fast.train.ema import EmaState
from svilm_fast.train.engine import Engine
from svilm_fast.train.errors import CheckpointError
from svilm_fast.train.files import save_tensors, write_atomically, write_json
from svilm_fast.train.manifest import (
    MANIFEST,
    committed_tags,
    damage_of,
    remove_listed,
    tags_in,
    write_manifest,
)
from svilm_fast.train.optimizer import RATE_FACTOR, described_groups
from svilm_fast.train.trust import check_owner

log = logging.getLogger(__name__)

LATEST = "latest"
STATE = "trainer_state.json"


@dataclass
class TrainerState:
    """What continues a run beside weights and moments: the step and where the data stand.

    data: `state_dict()` of this rank's loader. source: the checkpoint that it was read from.
    """

    step: int
    data: dict[str, Any]
    source: Path | None = field(default=None, compare=False)


def tag_of(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step_{step:08d}"


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Return the full shape of every parameter, also where ZeRO 3 has partitioned it."""
    return {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
    }


def check_shapes(saved: dict[str, list[int]], model: nn.Module, source: Path) -> None:
    """Raise CheckpointError naming the first parameter that differs, with both shapes."""
    wanted = parameter_shapes(model)
    for name, shape in wanted.items():
        if name not in saved:
            raise CheckpointError(f"{source} has no parameter {name!r} of shape {shape}")
        if saved[name] != shape:
            raise CheckpointError(
                f"{source}: parameter {name!r} has shape {saved[name]}, the model's is {shape}; "
                "use the configuration that the checkpoint was trained with"
            )
    extra = sorted(set(saved) - set(wanted))
    if extra:
        raise CheckpointError(f"{source} holds a parameter {extra[0]!r} that the model lacks")


def save_random_state(path: Path, device: torch.device) -> None:
    """Write the state of torch's, NumPy's and Python's generators."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state["numpy_keys"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    others = {
        "numpy": json.dumps([name, int(position), int(has_gauss), float(gauss)]),
        "python": json.dumps(random.getstate()),
    }
    save_tensors(state, path, metadata=others)


def load_random_state(path: Path, device: torch.device) -> None:
    """Restore what `save_random_state` wrote."""
    from safetensors import safe_open

    state = load_file(path)
    with safe_open(path, framework="pt") as file:
        others = file.metadata()
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, position, has_gauss, gauss = json.loads(others["numpy"])
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, gauss))
    version, internal, gauss_next = json.loads(others["python"])
    random.setstate((version, tuple(internal), gauss_next))


def average_file(folder: Path, engine: Engine) -> Path:
    """Return where this rank's share of the weights' average is; stage 0 has one for all ranks."""
    rank = engine.ranks.rank if engine.zero_stage > 0 else 0
    return folder / f"ema_rank_{rank:05d}.safetensors"


def save_average(engine: Engine, folder: Path) -> None:
    """Write this rank's share of the average, if there is one that has begun."""
    average = engine.ema
    if average is None or not average.state.started:
        return
    if engine.zero_stage > 0 or engine.ranks.is_first:
        shards = {f"{number:05d}": shard for number, shard in enumerate(average.shards)}
        save_tensors(shards, average_file(folder, engine))


def load_average(engine: Engine, folder: Path, described: dict[str, Any]) -> None:
    """Continue the average of a checkpoint, or begin one at its weights where it has none."""
    average, saved = engine.ema, described["ema"]
    if average is None:
        if saved is not None:
            log.warning(
                "%s holds an average of the weights, which ends here: ema.decay=null", folder
            )
        return
    if saved is None:
        average.restart(int(described["step"]))
        if int(described["step"]) > engine.config.ema.start_step:
            log.warning("%s holds no average of the weights: it begins at this step", folder)
        return
    average.state = EmaState(started=True, updates=int(saved["updates"]))
    shards = load_file(average_file(folder, engine), device=str(engine.ranks.device))
    for number, shard in enumerate(average.shards):
        shard.copy_(shards[f"{number:05d}"])


def described_average(engine: Engine) -> dict[str, Any] | None:
    """Return what a checkpoint records of the average; None where there is none yet."""
    average = engine.ema
    if average is None or not average.state.started:
        return None
    return {"updates": average.state.updates, "decay": average.config.decay}


def check_groups(saved: list[dict[str, Any]], engine: Engine, source: Path) -> None:
    """Raise CheckpointError where parameters are grouped or locked otherwise than they were."""
    here = described_groups(engine.deepspeed.optimizer)
    if here == saved:
        return
    for was, is_now in itertools.zip_longest(saved, here):
        if was != is_now:
            break
    told = [
        "none" if group is None else f"{group['name']} at {group[RATE_FACTOR]:g} of the rate"
        for group in (was, is_now)
    ]
    raise CheckpointError(
        f"{source} was written with other parameter groups ({told[0]}, here {told[1]}); keep "
        "optimizer.layer_decay, optimizer.no_decay, video.lock and text.lock as they were, or "
        "continue from the portable checkpoint with --init-from"
    )


def required_files(folder: Path) -> list[str]:
    """Return the names that a checkpoint must hold, by what it says of stage and rank count.

    Raises ValueError where it does not say so.
    """
    try:
        described = json.loads((folder / STATE).read_bytes())
        ranks, stage = range(described["world_size"]), described["zero_stage"]
        averaged = described["ema"] is not None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{STATE} is missing or damaged") from None
    names = [STATE]
    for rank in ranks:
        names += [f"random_rank_{rank:05d}.safetensors", f"data_rank_{rank:05d}.json"]
        if stage > 0:
            names.append(_named_like(folder, f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
        if stage == 3:
            names.append(_named_like(folder, f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"))
        if averaged and (stage > 0 or rank == 0):
            names.append(f"ema_rank_{rank:05d}.safetensors")
    return names if stage == 3 else [*names, "mp_rank_00_model_states.pt"]


def _named_like(folder: Path, name: str) -> str:
    """DeepSpeed puts the precision before some names."""
    return next((path.name for path in folder.glob(f"*{name}")), name)


def problem_with(folder: Path) -> str | None:
    """Return why a checkpoint cannot be trusted, or None if every byte is as it was written."""
    return damage_of(folder, required=required_files)


def remove_checkpoint(folder: Path) -> None:
    """Remove a step's folder: the manifest first, so that it never looks complete."""
    try:
        remove_listed(folder)
    except (OSError, ValueError):
        # Never completed, or damaged: all in it comes from a save.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def newest_verified(folder: Path) -> str | None:
    """Return the newest checkpoint that verifies, saying why newer ones were passed over.

    Returns None when nothing was ever committed: a kill during a run's first save leaves files, but
    no manifest and no `latest`. Raises CheckpointError when something was committed and nothing can
    be trusted, so that a run never starts from scratch by accident.
    """
    tags = [tag for tag in tags_in(folder) if (folder / tag).is_dir()]
    if not (folder / LATEST).exists() and not committed_tags(folder):
        if tags:
            log.warning(
                "%s holds the unfinished first save of a run that ended during it (%s): there is "
                "nothing to resume",
                folder,
                tags[0],
            )
        return None
    reasons: list[str] = []
    for tag in tags:
        reason = problem_with(folder / tag)
        if reason is None:
            if reasons:
                log.warning("resuming from %s instead", tag)
            return tag
        reasons.append(f"{tag}: {reason}")
        log.warning("checkpoint %s is passed over: %s", tag, reason)
    if (folder / LATEST).exists() and not tags:
        latest = (folder / LATEST).read_bytes()[:100].decode(errors="replace").strip()
        reasons.append(f"{LATEST} names {latest!r}, which is absent")
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {folder} can be trusted ({'; '.join(reasons)}); "
            "start anew with --overwrite"
        )
    return None


def save_checkpoint(
    engine: Engine,
    folder: Path,
    state: TrainerState,
    keep: int,
    *,
    copies: Sequence[Path] = (),
) -> Path:
    """Save this step on all ranks and commit it; older ones beyond `keep` are removed.

    copies: files that are copied into the checkpoint, and so are covered by its manifest.
    """
    ranks, tag = engine.ranks, tag_of(state.step)
    target = folder / tag
    needed, what = expected_bytes(engine, folder), f"the checkpoint of step {state.step}"

    def make_room() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, needed, what)

    ranks.from_first(make_room)
    try:
        return _save(engine, folder, state, keep, copies)
    except Exception as error:
        full = explained(error, folder, needed, what)
        if full is None:
            raise
        shutil.rmtree(target, ignore_errors=True)
        raise full from error


def expected_bytes(engine: Engine, folder: Path) -> int:
    """Return the size of the newest checkpoint, or the least that the first one needs."""
    tags = committed_tags(folder)
    if tags:
        return bytes_in(folder / tags[0])
    moments = {"adamw": 2, "sgd": 1}[engine.config.optimizer.name]
    elements = sum(math.prod(shape) for shape in parameter_shapes(engine.model).values())
    return 4 * (1 + moments) * elements


def _save(
    engine: Engine, folder: Path, state: TrainerState, keep: int, copies: Sequence[Path]
) -> Path:
    ranks, tag = engine.ranks, tag_of(state.step)
    target = folder / tag
    if ranks.is_first:
        # Left behind by a run that ended during its save, or the same step saved again.
        if target.exists():
            remove_checkpoint(target)
        target.mkdir(parents=True, exist_ok=True)
    ranks.barrier()
    engine.deepspeed.save_checkpoint(str(folder), tag=tag, save_latest=False)
    save_random_state(target / f"random_rank_{ranks.rank:05d}.safetensors", ranks.device)
    write_json(target / f"data_rank_{ranks.rank:05d}.json", state.data)
    save_average(engine, target)
    if ranks.is_first:
        described = {
            "step": state.step,
            "world_size": ranks.world_size,
            "zero_stage": engine.zero_stage,
            "precision": engine.config.training.precision,
            "optimizer": engine.config.optimizer.name,
            "parameters": parameter_shapes(engine.model),
            "groups": described_groups(engine.deepspeed.optimizer),
            "ema": described_average(engine),
        }
        write_json(target / STATE, described)
        for path in copies:
            shutil.copyfile(path, target / path.name)
    ranks.barrier()
    if ranks.is_first:
        write_manifest(target)
        write_atomically(folder / LATEST, tag.encode())
        for old in committed_tags(folder)[keep:]:
            remove_checkpoint(folder / old)
    ranks.barrier()
    return target


def _choose(engine: Engine, folder: Path) -> Path | None:
    """Let rank 0 verify and choose, and give every rank its answer or its error."""
    tag = engine.ranks.from_first(lambda: newest_verified(folder))
    return folder / tag if tag else None


def load_checkpoint(engine: Engine, folder: Path, *, trust: bool = False) -> TrainerState | None:
    """Load the newest verified checkpoint into the engine; None when there is none at all.

    trust: also read files that another user may have written. Raises CheckpointError for another
    shape, rank count, stage or precision.
    """
    source = _choose(engine, folder)
    if source is None:
        return None
    ranks = engine.ranks
    ranks.from_first(lambda: check_owner(source, trust=trust))
    described = json.loads((source / STATE).read_text())
    check_shapes(described["parameters"], engine.model, source)
    here = {
        "world_size": ranks.world_size,
        "zero_stage": engine.zero_stage,
        "precision": engine.config.training.precision,
    }
    for key, value in here.items():
        if described[key] != value:
            raise CheckpointError(
                f"{source} was written with {key}={described[key]}, this run has {value}; "
                "resume as it was, or continue from the portable checkpoint with --init-from"
            )
    check_groups(described["groups"], engine, source)
    if not engine.load_deepspeed_checkpoint(str(folder), source.name):
        raise CheckpointError(f"DeepSpeed found nothing to load in {source}")
    load_average(engine, source, described)
    load_random_state(source / f"random_rank_{ranks.rank:05d}.safetensors", ranks.device)
    data = json.loads((source / f"data_rank_{ranks.rank:05d}.json").read_text())
    return TrainerState(step=int(described["step"]), data=data, source=source)
