"""Loads a finished run in one process without DeepSpeed: configuration, model, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from svilm_fast.core.errors import UserError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.tasks.base import Task, task_of
from svilm_fast.train.checkpoint.portable import load_weights
from svilm_fast.train.checkpoint.portable_files import check_portable
from svilm_fast.train.checkpoint.resume import check_tokenizer
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.options import Weights
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.folder.files import read_json


@dataclass
class LoadedRun:
    """A finished run. step: its optimizer steps. weights: which of its weights were loaded."""

    config: RunConfig
    task: Task
    model: nn.Module
    tokenizer: Tokenizer
    step: int
    files: RunFiles
    weights: Weights = Weights.RAW


def load_run(
    run_dir: str | Path,
    *,
    device: torch.device | str = "cpu",
    overrides: list[str] | None = None,
    weights: Weights | None = None,
) -> LoadedRun:
    """Load the portable checkpoint of a run directory, in evaluation mode.

    weights: None selects the average if the run has one and `ema.evaluate` is true. Raises
    UserError if the directory is not a run, and CheckpointError if it has no valid portable
    checkpoint, if overrides changed a shape of the model, or if there is no average to load.
    """
    files = RunFiles(Path(run_dir))
    if not files.config.is_file():
        raise UserError(
            f"{run_dir} is not a run directory: it has no config.yaml; give the folder that "
            "`svilm pretrain` or `svilm train` wrote (run.dir)"
        )
    saved = check_portable(files.portable)
    check_tokenizer(files, files.portable)
    kept = files.portable / files.config.name
    config = load_config(str(kept if kept.is_file() else files.config), overrides or [])
    task = task_of(config)
    kept = files.portable / files.task.name
    if kept.is_file():
        task.restore(read_json(kept))
    model = task.model()
    if weights is None:
        averaged = saved["ema"] is not None and config.ema.evaluate
        weights = Weights.EMA if averaged else Weights.RAW
    described = load_weights(model, files.portable, average=weights is Weights.EMA)
    return LoadedRun(
        config=config,
        task=task,
        model=model.to(device).eval(),
        tokenizer=Tokenizer.load(files.tokenizer),
        step=int(described["step"]),
        files=files,
        weights=weights,
    )
