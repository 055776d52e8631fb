"""DeepSpeed checkpoints, committed in two phases and verified before they are read.

DeepSpeed's rank 0 writes `latest` when its own files are complete. If another rank dies before it
has written its files, `latest` names an incomplete checkpoint, and the next start silently loads
half of it or begins from scratch. Here all ranks write first. After a barrier rank 0 writes a
manifest with the SHA-256 of every file, then `latest`. A checkpoint without a valid manifest is
ignored.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.train.checkpoint.rank_state import (
    described_average,
    load_average,
    load_random_state,
    save_average,
    save_random_state,
)
from svilm_fast.train.checkpoint.saved_state import (
    TRAINER_STATE,
    read_data_state,
    read_trainer_state,
)
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.engine.optimizer import RATE_FACTOR, described_groups
from svilm_fast.train.folder.disk import bytes_in, check_space, late_errors, save_error
from svilm_fast.train.folder.manifest import (
    LATEST,
    MANIFEST,
    SAVED,
    committed_tags,
    damage_of,
    refuse_link,
    remove_listed,
    tags_in,
    was_committed,
    write_manifest,
)
from svilm_fast.train.folder.trust import check_owner, understood

log = logging.getLogger(__name__)


@dataclass
class TrainerState:
    """The state of a run besides weights, moments and random state.

    data: `state_dict()` of this rank's loader. source: the checkpoint that it was read from.
    """

    step: int
    data: dict[str, Any]
    source: Path | None = field(default=None, compare=False)


def tag_of(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step_{step:08d}"


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Return the full shape of every parameter, even if ZeRO 3 has partitioned it."""
    return {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
    }


def check_shapes(saved: dict[str, list[int]], model: nn.Module, source: Path) -> None:
    """Raise CheckpointError with the first parameter that differs and both its shapes."""
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


def check_groups(saved: list[dict[str, Any]], engine: Engine, source: Path) -> None:
    """Raise CheckpointError if parameters are grouped or frozen differently than at the save."""
    here = described_groups(engine.deepspeed.optimizer)
    if here == saved:
        return
    for was, is_now in itertools.zip_longest(saved, here):
        if was != is_now:
            break
    texts = [
        "none" if group is None else f"{group['name']} at {group[RATE_FACTOR]:g} of the rate"
        for group in (was, is_now)
    ]
    raise CheckpointError(
        f"{source} was written with other parameter groups ({texts[0]}, here {texts[1]}); keep "
        "optimizer.layer_decay, optimizer.no_decay, video.lock and text.lock as they were, or "
        "continue from the portable checkpoint with --init-from"
    )


def required_files(folder: Path) -> list[str]:
    """Return the names that a checkpoint of its ZeRO stage and rank count must hold.

    Raises ValueError if its description is damaged.
    """
    described = read_trainer_state(folder)
    stage, averaged = described["zero_stage"], described["ema"] is not None
    # DeepSpeed prefixes the names of its shards with the precision.
    shards = {name[name.find("zero_pp_rank_") :]: name for name in os.listdir(folder)}
    names = [TRAINER_STATE, *described.get("copies", [])]
    for rank in range(described["world_size"]):
        names += [f"random_rank_{rank:05d}.safetensors", f"data_rank_{rank:05d}.json"]
        kinds = ["optim"] * (stage > 0) + ["model"] * (stage == 3)
        own = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for kind in kinds]
        names += [shards.get(name, name) for name in own]
        if averaged and (stage > 0 or rank == 0):
            names.append(f"ema_rank_{rank:05d}.safetensors")
    return names if stage == 3 else [*names, "mp_rank_00_model_states.pt"]


def problem_with(folder: Path) -> str | None:
    """Return why a checkpoint is invalid, or None if every byte is unchanged."""
    return damage_of(folder, required=required_files)


def remove_checkpoint(folder: Path) -> None:
    """Remove the files that a save wrote, and the folder if it is then empty.

    The manifest is removed first, so that the folder never looks complete. Raises OSError for a
    symbolic link.
    """
    refuse_link(folder)
    try:
        remove_listed(folder)
    except (OSError, ValueError):  # incomplete or damaged
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if SAVED.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
    if folder.is_dir():
        left = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        log.warning("%s is kept: it contains %s, which no checkpoint save wrote", folder, left)


def newest_verified(folder: Path) -> str | None:
    """Return the newest valid checkpoint, and log why newer ones were skipped.

    Returns None if nothing was ever committed: a kill during the first save of a run leaves files,
    but no manifest and no `latest`. Raises CheckpointError if there are committed checkpoints and
    none is valid, or if the folder cannot be read: a run never starts from scratch by accident.
    """
    try:
        tags = [tag for tag in tags_in(folder) if (folder / tag).is_dir()]
        committed = os.path.lexists(folder / LATEST) or any(
            was_committed(folder / tag) for tag in tags
        )
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read ({error.strerror}); resume as a user who can read it"
        ) from error
    if not committed:
        if tags:
            log.warning(
                "%s contains only an incomplete first checkpoint (%s): the run ended during "
                "the save, so there is nothing to resume",
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
        log.warning("checkpoint %s is skipped: %s", tag, reason)
    if not tags:
        reasons.append(f"{LATEST} names {_latest(folder)!r}, which does not exist")
    raise CheckpointError(
        f"no checkpoint in {folder} passes verification ({'; '.join(reasons)}); "
        "start a new run with --overwrite"
    )


def _latest(folder: Path) -> str:
    """Return the content of `latest` for a message."""
    try:
        with (folder / LATEST).open("rb") as file:
            return file.read(100).decode(errors="replace").strip()
    except OSError:
        return ""


def save_checkpoint(
    engine: Engine,
    folder: Path,
    state: TrainerState,
    keep: int,
    *,
    copies: Sequence[Path] = (),
    before: Callable[[Path], None] = lambda target: None,
    during: Callable[[Path], None] = lambda target: None,
) -> Path:
    """Save this step on all ranks, commit it, and remove all but the newest `keep` checkpoints.

    copies: files to copy into the checkpoint, which its manifest then covers. before, during:
    called with the checkpoint's folder on every rank, after the check for disk space and after
    DeepSpeed has written its files.
    """
    ranks, tag, what = engine.ranks, tag_of(state.step), f"the checkpoint of step {state.step}"
    target = folder / tag

    def make_room() -> int:
        folder.mkdir(parents=True, exist_ok=True)
        needed = expected_bytes(engine, folder)
        check_space(folder, needed, what)
        return needed

    def prepare() -> None:
        # A run ended during this save, or saves the same step again.
        if os.path.lexists(target):
            try:
                remove_checkpoint(target)
            except OSError as error:
                raise CheckpointError(f"{target} cannot be replaced: {error.strerror}") from error
        if target.exists():
            raise CheckpointError(
                f"{target} contains files that no checkpoint save wrote; move them away"
            )
        target.mkdir(parents=True)

    def commit() -> None:
        if ranks.is_first:
            write_manifest(target)
            write_atomically(folder / LATEST, tag.encode())

    def together(write: Callable[[], None]) -> None:
        """Write on all ranks; if one fails, remove the checkpoint and raise its error on all."""
        failure: UserError | None = None
        try:
            write()
        except OSError as error:
            failure = save_error(error, folder, needed, f"{what} (rank {ranks.rank})")
            failure.__cause__ = error
        found = [one for one in ranks.gather(failure) if one is not None]
        if found:
            ranks.from_first(lambda: remove_checkpoint(target))
            raise found[0]

    needed = ranks.from_first(make_room)
    before(target)
    ranks.from_first(prepare)
    together(partial(_write, engine, folder, state, copies, during))
    together(commit)
    if ranks.is_first:
        _remove_older(folder, tag, keep)
    ranks.barrier()
    return target


def expected_bytes(engine: Engine, folder: Path) -> int:
    """Return the size of the newest checkpoint, or an estimate for the first one."""
    tags = committed_tags(folder)
    if tags:
        return bytes_in(folder / tags[0])
    config = engine.config
    whole = 2 if config.training.precision == "bf16" else 4
    # fp32 copies of each parameter: moments, ZeRO's masters, the average.
    parts = {"adamw": 2, "sgd": 1}[config.optimizer.name]
    trained = 4 * (parts + (engine.zero_stage > 0) + (engine.ema is not None))
    shapes = parameter_shapes(engine.model)
    return sum(
        math.prod(shapes[name]) * (whole + trained * parameter.requires_grad)
        for name, parameter in engine.model.named_parameters()
    )


def _write(
    engine: Engine,
    folder: Path,
    state: TrainerState,
    copies: Sequence[Path],
    during: Callable[[Path], None],
) -> None:
    """Write this rank's files. Raises OSError where a write failed, after DeepSpeed's barriers."""
    ranks, tag = engine.ranks, tag_of(state.step)
    target = folder / tag
    with late_errors(engine.deepspeed.checkpoint_engine):
        engine.deepspeed.save_checkpoint(str(folder), tag=tag, save_latest=False)
    during(target)
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
            "copies": [path.name for path in copies],
        }
        write_json(target / TRAINER_STATE, described)
        for path in copies:
            shutil.copyfile(path, target / path.name)


def _remove_older(folder: Path, tag: str, keep: int) -> None:
    """Remove all checkpoints up to `tag` but the newest `keep`; a failure is only logged.

    Checkpoints after `tag` are damaged, because the run resumed before them, and are not counted.
    """
    tags = committed_tags(folder)
    for old in tags[tags.index(tag) + keep :]:
        try:
            remove_checkpoint(folder / old)
        except OSError as error:
            log.warning("%s could not be removed: %s", folder / old, error)


def load_checkpoint(engine: Engine, folder: Path, *, trust: bool = False) -> TrainerState | None:
    """Load the newest valid checkpoint into the engine; returns None if there is none.

    trust: also read files that another user may have written. Raises CheckpointError if shapes,
    rank count, stage or precision differ.
    """
    ranks = engine.ranks
    tag = ranks.from_first(lambda: newest_verified(folder))
    if tag is None:
        return None
    source = folder / tag
    ranks.from_first(lambda: check_owner(source, trust=trust))
    described = read_trainer_state(source)
    check_shapes(described["parameters"], engine.model, source)
    here = {
        "world_size": ranks.world_size,
        "zero_stage": engine.zero_stage,
        "precision": engine.config.training.precision,
    }
    for key, value in here.items():
        if described[key] != value:
            raise CheckpointError(
                f"{source} was written with {key}={described[key]}, but this run has {value}; "
                "resume with the saved value, or continue from the portable checkpoint with "
                "--init-from"
            )
    check_groups(described["groups"], engine, source)
    with understood(source):
        if not engine.load_deepspeed_checkpoint(str(folder), source.name):
            raise CheckpointError(f"DeepSpeed found nothing to load in {source}")
    load_average(engine, source, described)
    load_random_state(source / f"random_rank_{ranks.rank:05d}.safetensors", ranks.device)
    path = source / f"data_rank_{ranks.rank:05d}.json"
    with understood(path):
        data = read_data_state(path)
    return TrainerState(step=int(described["step"]), data=data, source=source)
