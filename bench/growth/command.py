"""`svilm bench growth`: loss over FLOPs of a grown network and of one trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.growth.figure import TITLE, draw
from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.errors import ConfigError
from svilm_fast.core.terminal import print
from svilm_fast.report.curves import read_metrics
from svilm_fast.tasks.base import task_of
from svilm_fast.train.campaigns.command import ablate
from svilm_fast.train.campaigns.jobs import TableJob, table_jobs
from svilm_fast.train.campaigns.table import ResultTable
from svilm_fast.train.campaigns.table_file import read_table
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.run_files import RunFiles

TABLE = "vidrop_growth"
PATHS = {"grown": ("small", "grown"), "from scratch": ("scratch",)}
FLOPS = 1e12
# Records that a loss is averaged over, so that no single lucky batch decides.
AVERAGED = 5


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
    check_runs(name, content)
    check_replaceable(figure, TITLE)
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


def check_runs(name: str, table: ResultTable) -> None:
    """Raise ConfigError if a run of a path is missing, or is no training."""
    wanted = {run for runs in PATHS.values() for run in runs}
    trained = {run for run, spec in table.runs.items() if spec.config is not None}
    missing = sorted(wanted - trained)
    if missing:
        raise ConfigError(
            f"table {name!r} has no training called {', '.join(missing)}: it needs the runs small, "
            "grown (which starts from what `ckpt grow` made of small) and scratch"
        )
    if "small" not in table.chain("grown"):
        raise ConfigError(f"table {name!r}: the run grown does not come after the run small")


def trailing(loss: np.ndarray) -> np.ndarray:
    """Mean of each loss [n] and up to four before it."""
    total = np.concatenate([[0.0], np.cumsum(loss)])
    end = np.arange(1, len(total))
    start = np.maximum(end - AVERAGED, 0)
    return (total[end] - total[start]) / (end - start)


def reached(path: list[PathRun], loss: float) -> float | None:
    """TeraFLOPs until the trailing mean of the last run of a path is at most `loss`."""
    last = path[-1]
    below = np.flatnonzero(trailing(last.loss) <= loss)
    return float(last.flops[below[0]]) if len(below) else None


def summary(found: dict[str, list[list[PathRun]]]) -> list[str]:
    """For each seed the FLOPs until the final loss of the network from scratch."""
    lines = []
    for number, (grown, scratch) in enumerate(
        zip(found["grown"], found["from scratch"], strict=True)
    ):
        goal = float(trailing(scratch[-1].loss)[-1])
        needed, whole = reached(grown, goal), float(scratch[-1].flops[-1])
        what = "was not reached" if needed is None else f"after {needed:.3g} TFLOP"
        lines.append(
            f"repetition {number + 1}: the loss {goal:.4g} that training from scratch has after "
            f"{whole:.3g} TFLOP: grown {what}"
        )
    return lines
