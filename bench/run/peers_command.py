"""`svilm bench peers`: our losses and those of other packages, interleaved on the same tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.run.command import (
    chosen_device,
    measured_ceilings,
    quiet_progress,
)
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.run.ratios import HEAD, as_json, markdown, ratios
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import result, run_together
from svilm_fast.bench.run.text import exit_code, failures, line, status_text
from svilm_fast.bench.suites import ops as suite
from svilm_fast.bench.suites.benchmark import Benchmark
from svilm_fast.bench.suites.ops import cases
from svilm_fast.core import earlier_result
from svilm_fast.kernels.registry import Op, ops

_DIRECTIONS = ("forward", "both")
# With fewer rounds even the full range of ratios contains the median in less than 99 % of cases.
_LEAST_ROUNDS = 9


def peers(
    op: Annotated[
        list[str] | None,
        typer.Option(help="Only these ops (repeat); default: both losses."),
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only these cases (repeat).")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if available.")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, max=1e6, help="Seconds for each provider of a case.")
    ] = 2.0,
    compiled: Annotated[
        bool | None, typer.Option(help="Also under torch.compile; default: on a GPU.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Result file; default bench/results/<machine>/peers.json.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
) -> None:
    """Time and peak memory of every provider, interleaved, with ratios to our path.

    Our path is the reference on a CPU and the fused op on a GPU. A peer that is not installed is
    skipped, with the reason. Exit status: 0, 2 wrong usage, 4 nothing was measured, 5 a provider
    gave no figure.
    """
    where = chosen_device(device)
    groups = list(_groups(where, op or _compared(), case, compiled))
    if not groups:
        raise typer.BadParameter(f"no such case on {where.type}: {', '.join(case or [])}")
    console = wide_console()
    before = environment(where)
    path = out or ROOT / "bench" / "results" / slug(before) / "peers.json"
    check_replaceable(path)
    if table is not None:
        earlier_result.check_replaceable(table, HEAD)
    ceilings = measured_ceilings(where, groups[0], console)
    records: list[Record] = []
    with quiet_progress(console) as progress:
        task = progress.add_task("measuring", total=len(groups))
        for group in groups:
            for record in run_together(
                group, where, ceilings, budget_s=budget, least=_LEAST_ROUNDS
            ):
                records.append(record)
                console.print(line(record), markup=False, highlight=False, soft_wrap=True)
            write_json(path, result(records, before, where, ceilings, complete=False))
            progress.update(task, advance=1, refresh=True)
    ours = "fused" if where.type == "cuda" else "reference"
    found = ratios(records, ours)
    write_json(path, result(records, before, where, ceilings) | {"ratios": as_json(found)})
    text = markdown(records, found)
    if table is not None:
        table.write_text(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {len(records)} records to {path}", soft_wrap=True)
    for record in failures(records):
        console.print(f"no figure: {record.id}: {status_text(record)}", markup=False)
    raise typer.Exit(int(exit_code(records)))


def _groups(
    device: torch.device,
    names: list[str],
    wanted: list[str] | None,
    compiled: bool | None,
) -> Iterator[list[Benchmark]]:
    """Groups of benchmarks to interleave: the providers of one case and direction."""
    unknown = sorted(set(names) - set(ops()))
    if unknown:
        raise typer.BadParameter(f"unknown op {', '.join(unknown)}: choose {', '.join(ops())}")
    cuda = device.type == "cuda"
    for op in (ops()[name] for name in names):
        for case, shape in _cases(op, device).items():
            if (wanted and case not in wanted) or "workspace_bytes" in shape:
                continue
            by_direction: dict[str, list[Benchmark]] = {}
            for provider, call in suite.providers(op, device, shape).items():
                if provider == "compile" and not (cuda if compiled is None else compiled):
                    continue
                dtype = torch.bfloat16 if cuda else torch.float32
                for one in suite.of_provider(op, case, shape, dtype, provider, call):
                    by_direction.setdefault(one.parts["direction"], []).append(one)
            for direction in _DIRECTIONS:
                yield by_direction[direction]


def _compared() -> list[str]:
    """The ops that declare sizes for this comparison."""
    chosen = (op for op in ops().values() if op.sizes.peers)
    return [op.name for op in sorted(chosen, key=lambda op: op.priority)]


def _cases(op: Op, device: torch.device) -> Mapping[str, Mapping[str, Any]]:
    return op.sizes.peers if device.type == "cpu" and op.sizes.peers else cases(op, device)
