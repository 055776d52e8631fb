"""`svilm ckpt grow`: a wider and deeper video tower with the function of a trained one."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.files import write_atomically
from svilm_fast.core.terminal import print
from svilm_fast.models.expansion import CannotGrowError, Expansion, difference, grown_sizes
from svilm_fast.tasks.base import task_of
from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.checkpoint.inherit import config_of, portable_of
from svilm_fast.train.checkpoint.portable_files import (
    PortableState,
    check_portable,
    drafts_of,
    read_weights,
    write_portable,
)
from svilm_fast.train.checkpoint.store import parameter_shapes
from svilm_fast.train.config.load import dump_config, load_config, overlay
from svilm_fast.train.config.options import Weights
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder.ownership import claim, mark
from svilm_fast.train.folder.trust import understood

# The grown encoder's outputs equal those of the source up to this.
TOLERANCE = 1e-5


def grow(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="run or portable checkpoint")],
    out: Annotated[Path, typer.Option(help="new folder, which loads as a run")],
    width: Annotated[
        int | None,
        typer.Option(min=1, max=65_536, help="new video.width, a multiple of the old one"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, max=1024, help="new video.depth, at least the old one")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(min=1, max=65_536, help="new video.heads [default: of the same width]"),
    ] = None,
    noise: Annotated[
        float,
        typer.Option(
            min=0, max=10, help="noise that tells copied weights apart, as a share of their own"
        ),
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="of the noise")] = 0,
    weights: Annotated[
        Weights, typer.Option(help="grow the raw weights, or their moving average")
    ] = Weights.RAW,
) -> None:
    """Grow a trained video tower in width and depth; the outputs stay equal to 1e-5.

    The new folder is read as --run by evaluation, and its folder `portable` by --weights-from. A
    training from it needs the printed settings. Moments and moving average start anew.
    """
    if width is None and depth is None and heads is None:
        raise UserError("give at least one of --width, --depth and --heads")
    folder = portable_of(source)
    if out.is_symlink() or (out.exists() and (out.is_file() or any(out.iterdir()))):
        raise UserError(f"{out} exists and is not empty: give a new --out")
    state = check_portable(folder)
    tree = config_of(folder)
    config = load_config(str(tree))
    if config.task.name != DEFAULT_TASK:
        raise UserError(
            f"{folder} is a run of task {config.task.name!r}; grow the run of pre-training that it "
            "started from"
        )
    try:
        sizes = grown_sizes(config.video, width, depth, heads)
        target = load_config(str(tree), complete=lambda values: overlay(values, {"video": sizes}))
        small, large = (task_of(one).model() for one in (config, target))
        with understood(folder):
            small.load_state_dict(read_weights(folder, average=weights is Weights.EMA))
        Expansion(noise, seed).fill(small, large)
    except CannotGrowError as error:
        raise CheckpointError(f"{folder} cannot be grown: {error}") from error
    grown = {name: value.detach().clone() for name, value in large.state_dict().items()}
    encoders: Any = [
        copy.deepcopy(model).get_submodule("encoder.video") for model in (small, large)
    ]
    found = difference(*encoders)
    if not found <= TOLERANCE:
        raise CheckpointError(
            f"the outputs of the grown encoder differ from those of {folder} by {found:.3g}, more "
            f"than {TOLERANCE:g}: nothing was written; please report it with the command"
        )
    state |= {"ema": None, "updates": 0, "parameters": parameter_shapes(large)}
    _write(out, folder, dump_config(target), grown, state)
    added = sum(value.numel() for value in grown.values())
    before = sum(parameter.numel() for parameter in small.parameters())
    print(f"wrote {out}: {before:,} parameters became {added:,}; outputs differ by {found:.2g}")
    print(f"settings of a training from it: {_settings(sizes)}")


def _settings(sizes: dict[str, Any]) -> str:
    flat = {key: value for key, value in sizes.items() if key != "grouping"}
    if "grouping" in sizes:
        flat["grouping.layers"] = str(sizes["grouping"]["layers"]).replace(" ", "")
    return " ".join(f"video.{key}={value}" for key, value in flat.items())


def _write(
    target: Path,
    source: Path,
    config: str,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
) -> None:
    """Write the folder of a run with these settings and weights, and the source's tokenizer."""
    files = RunFiles(target)
    target.mkdir(parents=True, exist_ok=True)
    mark(files, created=time.strftime("%Y-%m-%d %H:%M:%S %z"))
    tokenizer = source / files.tokenizer.name
    kept = [files.config] + ([files.tokenizer] if tokenizer.is_file() else [])
    claim(files, *kept, saves=drafts_of(files.portable))
    write_atomically(files.config, config.encode())
    if tokenizer.is_file():
        write_atomically(files.tokenizer, tokenizer.read_bytes())
    write_portable(files.portable, PortableState(weights, {}, None, state), kept)
