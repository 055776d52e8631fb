"""A run folder with an untrained model of about ten thousand parameters."""

from __future__ import annotations

from pathlib import Path

import torch

from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.world import render_world
from svilm_fast.objectives.svilm import build_model
from svilm_fast.train.checkpoint.portable_files import PortableState, describe_state, write_portable
from svilm_fast.train.config.load import dump_config, load_config
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.config.small_model import SMALL_MODEL


def make_untrained_run(folder: Path, *overrides: str) -> RunFiles:
    """Write a run folder that `load_run` opens, and beside it a world of six clips of a split."""
    world = folder.with_name(folder.name + "-world")
    render_world(world, train=6, val=6, test=6, size=32, frames=8, workers=1)
    data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
    config = load_config("demo", [*SMALL_MODEL, *data, f"run.dir={folder}", *overrides])
    files = RunFiles(folder)
    folder.mkdir(parents=True)
    files.config.write_text(dump_config(config))
    prepare_tokenizer(config.data).save(files.tokenizer)
    torch.manual_seed(0)
    weights = build_model(config).state_dict()
    described = describe_state(
        step=0,
        optimizer="adamw",
        updates=0,
        data={},
        parameters={name: list(value.shape) for name, value in weights.items()},
        ema=None,
    )
    state = PortableState(weights, {}, None, described)
    write_portable(files.portable, state, [files.config, files.tokenizer])
    return files
