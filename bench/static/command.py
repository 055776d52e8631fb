"""`svilm bench static`: prints, writes or checks the static table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import triton
import typer
from rich.progress import Progress

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.generated_section import write_section
from svilm_fast.bench.static.calibration import comparison_lines
from svilm_fast.bench.static.collect import collect, declared, unique_rows
from svilm_fast.bench.static.rules import broken_rules, differences, part_of_table, with_reasons
from svilm_fast.bench.static.table import (
    KernelRow,
    read_other_table,
    read_table,
    table_path,
    write_table,
)
from svilm_fast.bench.static.whole_op import predictions, whole_lines
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.console import Console
from svilm_fast.kernels.registry import KERNELS, ops

# The section of an op's README that holds the time of its calls.
SECTION = "whole op"


def static(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops (repeat).")] = None,
    variant: Annotated[str, typer.Option(help="Only variants whose label contains this.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the table under version control.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the table; known rows keep their reasons.")
    ] = False,
    recorded: Annotated[
        bool,
        typer.Option(
            "--recorded",
            help="Only predict whole ops, from the table; with --write into the READMEs.",
        ),
    ] = False,
    table: Annotated[Path | None, typer.Option(help="Another table than the default.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Compiler processes.")] = 2,
) -> None:
    """Compile every declared kernel variant for each target GPU and check the machine code.

    Exit status: 0 fine, 1 a rule is broken or the table differs, 2 wrong usage.
    """
    console = wide_console(160)
    path = table or table_path()
    if write and (op or variant):
        raise typer.BadParameter("--write writes the whole table; leave --op and --variant out")
    if recorded:
        if check or op or variant:
            raise typer.BadParameter("--recorded takes no --check, --op and --variant")
        _print_recorded(read_table(path), console, write=write)
        return
    tasks = declared(op, variant)
    before = read_table(path) if check or (write and path.is_file()) else []
    # The first table of a Triton version takes its reasons from the newest other table.
    known = before if check or path.is_file() else read_other_table(path)
    rows = with_reasons(_compile_all(tasks, workers, console), known)
    if op or variant:
        rows, before = part_of_table(rows, before, {task[:2] for task in tasks})

    problems = [f"! {row.key}: {text}" for row in rows for text in broken_rules(row)]
    if check:
        problems += differences(before, rows)
    if not check:
        _print_table(rows, console)
        _print_structure(rows, console)
        _print_whole_ops(rows, console)
    if write:
        write_table(rows, path)
        console.print(f"wrote {len(rows)} rows to {path.name}")
    for line in problems:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if problems:
        console.print(
            f"{len(problems)} problems under Triton {triton.__version__}. Fix the kernel or write "
            "the reason into the row (`rule: why`) after `svilm bench static --write`.",
            soft_wrap=True,
        )
        raise typer.Exit(1)
    console.print(f"{len(rows)} kernels for Triton {triton.__version__}: all rules hold")


def _compile_all(
    tasks: list[tuple[str, str, str]], workers: int, console: Console
) -> list[KernelRow]:
    cells = collect(tasks, workers=workers)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        return unique_rows(progress.track(cells, total=len(tasks), description="compiling"))


def _print_table(rows: list[KernelRow], console: Console) -> None:
    names = ("kernel", "variant", "target")
    numbers = ("regs", "spill", "shared", "tensor", "stores", "wide", "blocks")
    table = terminal_table((*names, *numbers), right=numbers)
    for row in sorted(rows, key=lambda row: row.key):
        table.add_row(
            row.kernel,
            row.variant,
            row.target,
            str(row.registers),
            str(row.spill_bytes),
            str(row.shared_bytes),
            row.tensor_instructions,
            str(row.loop_stores),
            f"{row.wide_loads}/{row.loads}",
            str(row.blocks_per_sm),
        )
    console.print(table)


def _print_structure(rows: list[KernelRow], console: Console) -> None:
    """The structural model, per tile, and its calibration."""
    modelled = [row for row in sorted(rows, key=lambda row: row.key) if row.clocks]
    if not modelled:
        return
    columns = {
        "products": lambda row: f"{row.products_percent} %",
        "tensor": lambda row: str(row.tensor_clocks),
        "issue (exposed)": lambda row: f"{row.issue_slots} ({row.exposed_slots})",
        "mufu": lambda row: str(row.mufu_clocks),
        "smem": lambda row: str(row.smem_bytes),
        "l2": lambda row: str(row.l2_bytes),
        "waited": lambda row: str(row.waited_clocks),
        "clocks": lambda row: row.clocks,
        "of floor": lambda row: f"{row.floor_percent} %",
    }
    texts = ("kernel", "variant", "bound", "copy distances")
    title = "per tile on sm_90: predicted, not measured (docs/static-gate.md)"
    table = terminal_table((*texts, *columns), right=tuple(columns), title=title)
    for row in modelled:
        cells = (text(row) for text in columns.values())
        table.add_row(row.kernel, row.variant, row.bound, row.copy_distances, *cells)
    console.print(table)
    for line in comparison_lines(modelled):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_recorded(rows: list[KernelRow], console: Console, *, write: bool) -> None:
    """The time of whole ops from a table, and the calls of which it lacks a kernel."""
    shown = _print_whole_ops(rows, console, write=write)
    for name, op in ops().items():
        for target in op.whole.targets if op.whole else ():
            if (name, target.label) not in shown:
                text = f"{name}, {target.label}: the table lacks one of its kernels; write it anew"
                console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_whole_ops(
    rows: list[KernelRow], console: Console, *, write: bool = False
) -> set[tuple[str, str]]:
    """The time of whole ops, which `write` also puts into their READMEs; op and call of each."""
    predicted = predictions(rows)
    for name, found in predicted.items():
        lines = whole_lines(found)
        title = f"{name}, whole op, ms: predicted, not measured (pessimistic/central/optimistic)"
        for line in (title, *lines):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if write:
            page = KERNELS / name / "README.md"
            write_section(page, SECTION, "\n".join(lines))
            console.print(f"wrote the section {SECTION!r} of {page}", soft_wrap=True)
    return {(name, each.target) for name, found in predicted.items() for each in found}
