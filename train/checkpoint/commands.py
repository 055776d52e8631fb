"""`svilm ckpt`: inspects the checkpoints of a run and converts them to the portable format."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted
from svilm_fast.core.units import bytes_text
from svilm_fast.train.checkpoint.portable_files import drafts_of, write_portable
from svilm_fast.train.checkpoint.portable_files import problem_with as problem_with_portable
from svilm_fast.train.checkpoint.saved_state import (
    PORTABLE_STATE,
    TRAINER_STATE,
    read_portable_state,
    read_trainer_state,
)
from svilm_fast.train.checkpoint.store import newest_verified, problem_with, tag_of
from svilm_fast.train.checkpoint.zero_files import read_checkpoint
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder.lock import locked
from svilm_fast.train.folder.ownership import claim


def convert(
    run: Annotated[Path, typer.Option("--run", help="folder of a run")],
    step: Annotated[
        int | None, typer.Option(min=0, help="which checkpoint; default: the newest")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; default: RUN/portable")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a portable checkpoint in the folder")
    ] = False,
) -> None:
    """Convert a run's DeepSpeed checkpoint, of any ZeRO stage and rank count, to a portable one.

    Needs neither ranks nor a GPU. Evaluation, report, --init-from and --weights-from read it.
    """
    files = RunFiles(run)
    target = out or files.portable
    _check_free(target, overwrite)
    tag = newest_verified(files.checkpoints) if step is None else tag_of(step)
    if tag is None or not (files.checkpoints / tag).is_dir():
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(
            f"{files.checkpoints} holds no {wanted}; `svilm ckpt info` lists what there is"
        )
    state = read_checkpoint(files.checkpoints / tag)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(run) if out is None else contextlib.nullcontext():
        if out is None:
            claim(files, saves=drafts_of(target))
        write_portable(target, state, RunFiles(files.checkpoints / tag).copied)
    print(f"wrote {target}: {_summary(state.described)}")


def info(
    path: Annotated[Path, typer.Argument(help="a run directory, or one checkpoint of either kind")],
) -> None:
    """Print step, rank count, ZeRO stage and sizes, and verify every checksum.

    Exits with 1 if a checkpoint is damaged or incomplete.
    """
    damaged = False
    for folder in _checkpoints_in(path):
        portable = (folder / PORTABLE_STATE).is_file()
        reason = problem_with_portable(folder) if portable else problem_with(folder)
        damaged |= reason is not None
        print(f"{folder}")
        print(f"  {_described(folder)}")
        contents = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in contents)
        verdict = "all SHA-256 checksums match" if reason is None else f"NOT usable: {reason}"
        print(f"  {counted(len(contents), 'file')}, {bytes_text(size)}; {verdict}")
    if damaged:
        raise typer.Exit(1)


def _checkpoints_in(path: Path) -> list[Path]:
    if any((path / name).is_file() for name in (TRAINER_STATE, PORTABLE_STATE)):
        return [path]
    parent = RunFiles(path).checkpoints if RunFiles(path).checkpoints.is_dir() else path
    found = sorted(folder for folder in parent.glob("step_*") if folder.is_dir())
    if RunFiles(path).portable.is_dir():
        found.append(RunFiles(path).portable)
    if not found:
        raise UserError(f"{path} holds no checkpoint; give a run directory or one checkpoint of it")
    return found


def _described(folder: Path) -> str:
    for name, read in ((TRAINER_STATE, read_trainer_state), (PORTABLE_STATE, read_portable_state)):
        if (folder / name).is_file():
            try:
                return _summary(read(folder))
            except ValueError as error:
                return str(error)
    return "unknown: its description is missing"


def _summary(described: dict[str, Any]) -> str:
    parts = [f"step {described['step']}"]
    if "zero_stage" in described:
        ranks = counted(described["world_size"], "rank")
        parts.append(f"ZeRO {described['zero_stage']} over {ranks}")
        parts.append(described["precision"])
    else:
        parts.append("portable")
    parts.append(described["optimizer"])
    parts.append(counted(len(described["parameters"]), "parameter tensor"))
    average = described["ema"]
    parts.append("no EMA" if average is None else f"EMA of {counted(average['updates'], 'update')}")
    return ", ".join(parts)


def _check_free(target: Path, overwrite: bool) -> None:
    """Raise UserError unless the folder is empty, absent, or a checkpoint to overwrite."""
    if target.is_symlink():
        raise UserError(f"{target} is a symbolic link, which is not followed: give another --out")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / PORTABLE_STATE).is_file():
        raise UserError(f"{target} exists and is not a portable checkpoint; give another --out")
    if not overwrite:
        raise UserError(f"{target} holds a portable checkpoint; replace it with --overwrite")
