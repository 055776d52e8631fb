"""`svilm bench run`: measure registered suites and write the records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from svilm_fast.bench.ceilings import Ceilings, measure_ceilings
from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.run.file import check_replaceable
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import run_into
from svilm_fast.bench.run.table import table
from svilm_fast.bench.run.text import exit_code, failures, line, status_text
from svilm_fast.bench.suites import benchmarks
from svilm_fast.bench.suites.benchmark import SUITES, Benchmark
from svilm_fast.core.console import Console
from svilm_fast.core.terminal import print

RESULTS = ROOT / "bench" / "results"


def run_suites(
    suite: Annotated[
        str, typer.Option(help=f"Suites, separated by commas: {', '.join(SUITES)}.")
    ] = ",".join(SUITES),
    only: Annotated[
        str | None, typer.Option(help="Only ids that match this shell pattern ('*/infonce/*').")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if available.")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, max=1e6, help="Seconds for each measurement.")
    ] = 0.3,
    deadline: Annotated[
        float,
        typer.Option(
            min=0.001, max=1e6, help="Time limit in seconds; benchmarks left then count as failed."
        ),
    ] = 3600.0,
    out: Annotated[
        Path | None, typer.Option(help="Result file; default bench/results/<machine>/run.json.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Print the ids and exit.")] = False,
) -> None:
    """Verify every benchmark on its own tensors, time it, write records and a table.

    The result file is written after each record, so a stopped run keeps all of them.

    Exit status: 0 measured, 2 wrong usage, 4 nothing was measured, 5 a benchmark gave no figure
    (it failed, or the deadline passed).
    """
    where = chosen_device(device)
    chosen = chosen_benchmarks(suite, where, only)
    if list_only:
        for id in chosen:
            print(id)
        return
    console = wide_console()
    before = environment(where)
    path = out or RESULTS / slug(before) / "run.json"
    check_replaceable(path)
    ceilings = measured_ceilings(where, chosen.values(), console)
    with quiet_progress(console) as progress:
        task = progress.add_task("measuring", total=len(chosen))

        def done(record: Record) -> None:
            progress.update(task, advance=1, description=record.id, refresh=True)
            if not console.is_terminal:
                console.print(line(record), markup=False, highlight=False, soft_wrap=True)

        records = run_into(
            path,
            chosen.values(),
            where,
            ceilings,
            before,
            budget_s=budget,
            deadline_s=deadline,
            done=done,
        )
    if console.is_terminal:
        console.print(table(records))
    console.print(f"wrote {len(records)} records to {path}", soft_wrap=True)
    for record in failures(records):
        console.print(
            f"no figure: {record.id}: {status_text(record)}", markup=False, soft_wrap=True
        )
    raise typer.Exit(int(exit_code(records)))


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; by default a GPU if there is one.

    Raises `typer.BadParameter` if it is not available.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device {name}: choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: PyTorch sees no GPU here")
    return torch.device(name)


def chosen_benchmarks(suites: str, device: torch.device, only: str | None) -> dict[str, Benchmark]:
    """The benchmarks of comma-separated suites; unknown names are a usage error."""
    try:
        return benchmarks([name.strip() for name in suites.split(",")], device, only)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def measured_ceilings(device: torch.device, chosen: Any, console: Console) -> Ceilings | None:
    """Product and copy rate of the device; None if only host code is measured."""
    if all(benchmark.on_host for benchmark in chosen):
        return None
    ceilings = measure_ceilings(device)
    console.print(ceilings.describe())
    return ceilings


def quiet_progress(console: Console) -> Progress:
    """A progress bar that is drawn only between two measurements, and only on a terminal.

    A drawing thread would take the interpreter from the timed call.
    """
    return Progress(
        console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
    )
