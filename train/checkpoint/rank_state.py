"""The files that each rank adds to a checkpoint: random state, and its shard of the average."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.train.engine.ema import EmaState
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.folder.files import save_tensors
from svilm_fast.train.folder.trust import opened_tensors, read_tensors, understood

log = logging.getLogger(__name__)


def save_random_state(path: Path, device: torch.device) -> None:
    """Write the state of the random generators of torch, NumPy and Python."""
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
    """Restore what `save_random_state` wrote. Raises CheckpointError for any other content."""
    with opened_tensors(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
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
    """Return the file of this rank's shard of the average; in stage 0 all ranks share one."""
    rank = engine.ranks.rank if engine.zero_stage > 0 else 0
    return folder / f"ema_rank_{rank:05d}.safetensors"


def save_average(engine: Engine, folder: Path) -> None:
    """Write this rank's shard of the average, if averaging has started."""
    average = engine.ema
    if average is None or not average.state.started:
        return
    if engine.zero_stage > 0 or engine.ranks.is_first:
        shards = {f"{number:05d}": shard for number, shard in enumerate(average.shards)}
        save_tensors(shards, average_file(folder, engine))


def load_average(engine: Engine, folder: Path, described: dict[str, Any]) -> None:
    """Continue the average of a checkpoint, or start one from its weights if it has none."""
    average, saved = engine.ema, described["ema"]
    if average is None:
        if saved is not None:
            log.warning(
                "%s holds an average of the weights, dropped because ema.decay=null",
                folder,
            )
        return
    if saved is None:
        average.restart(int(described["step"]))
        if int(described["step"]) > engine.config.ema.start_step:
            log.warning("%s holds no average of the weights: averaging starts at this step", folder)
        return
    average.state = EmaState(started=True, updates=int(saved["updates"]))
    path = average_file(folder, engine)
    shards = read_tensors(path, device=str(engine.ranks.device))
    with understood(path):
        for number, shard in enumerate(average.shards):
            shard.copy_(shards[f"{number:05d}"])


def described_average(engine: Engine) -> dict[str, Any] | None:
    """Return the record of the average for a checkpoint; None before averaging has started."""
    average = engine.ema
    if average is None or not average.state.started:
        return None
    return {"updates": average.state.updates, "decay": average.config.decay}
