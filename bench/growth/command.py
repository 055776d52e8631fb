"""`svilm bench growth`: loss over FLOPs of a grown network and of one trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.growth.figure import draw
from svilm_fast.core.terminal import print
from svilm_fast.report.curves import read_metrics
from svilm_fast.tasks.base import task_of
from svilm_fast.train.campaigns.command import ablate
from svilm_fast.train.campaigns.jobs import TableJob, table_jobs
from svilm_fast.train.campaigns.table import read_table
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.run_files import RunFiles

TABLE = "vidrop_growth"
PATHS = {"grown": ("small", "grown"), "from scratch": ("scratch",)}
FLOPS = 1e12


@dataclass(frozen=True)
class PathRun:
    """One run of a path: teraFLOPs since the path's start [n], loss [n]."""

    flops: np.ndarray
    loss: np.ndarray


def growth(
    table: Annotated[
        str, typer.Option(help="Table with the runs small, grown and scratch.")
    ] = TABLE,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default runs/ablations/TABLE.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Runs at a time.")] = 1,
    figure: Annotated[Path, typer.Option(help="Picture.")] = ROOT / "docs/figures/growth.png",
) -> None:
    """Train a grown network and one from scratch, and draw loss over FLOPs.

    Runs the table as `svilm ablate` does, so that a stopped command continues where it was.
    """
    name, content = read_table(table)
    folder = (out or Path("runs") / "ablations" / name).resolve()
    ablate(table, out=folder, jobs=jobs)
    places = table_jobs(content, folder, content.seeds)
    found = {
        label: [path_of([places[run, seed] for run in runs]) for seed in content.seeds]
        for label, runs in PATHS.items()
    }
    for line in summary(found):
        print(line)
    draw(found, figure)
    print(f"wrote {figure}")


def path_of(chain: list[TableJob]) -> list[PathRun]:
    """The runs of a path, one after another, on one axis of FLOPs."""
    done, parts = 0.0, []
    for job in chain:
        files = RunFiles(job.folder)
        steps, loss = read_metrics(files.metrics)["loss"]
        flops = task_of(load_config(str(files.config))).flops()
        assert flops is not None
        parts.append(PathRun(done + steps * flops.total / FLOPS, loss))
        done = float(parts[-1].flops[-1])
    return parts


def reached(path: list[PathRun], loss: float) -> float | None:
    """TeraFLOPs until the running minimum of the last run of a path is at most `loss`."""
    last = path[-1]
    below = np.flatnonzero(last.loss <= loss)
    return float(last.flops[below[0]]) if len(below) else None


def summary(found: dict[str, list[list[PathRun]]]) -> list[str]:
    """For each seed the FLOPs until the final loss of the network from scratch."""
    lines = []
    for number, (grown, scratch) in enumerate(
        zip(found["grown"], found["from scratch"], strict=True)
    ):
        goal = float(scratch[-1].loss[-1])
        needed, whole = reached(grown, goal), float(scratch[-1].flops[-1])
        what = "was not reached" if needed is None else f"after {needed:.3g} TFLOP"
        lines.append(
            f"repetition {number + 1}: the loss {goal:.4g} that training from scratch has after "
            f"{whole:.3g} TFLOP: grown {what}"
        )
    return lines
