"""`svilm bench table`: the README's table of GPU figures, from the result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.bench.compare.results import Results, read_results
from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.generated_section import put_section, section_of
from svilm_fast.bench.report.rows import Row, rows_of
from svilm_fast.bench.units import bytes_text, percent_text, rate_text, ratio_text, time_text
from svilm_fast.terminal import print

SECTION = "gpu figures"
RESULTS = ROOT / "bench" / "results"
NOTHING = (
    "**No kernel has been timed on a GPU yet**: speed, peak memory on a device, CUDA graphs and "
    "NCCL are not measured yet. `make gpu` on a machine with an NVIDIA GPU measures the ops."
)
# The reference is plain PyTorch in chunks.
PEERS = ("reference", "eager", "compile", "inf_cl")


def table(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="result files of GPUs; default: bench/results/*/ops.json"),
    ] = None,
    page: Annotated[Path, typer.Option(help="page with the section's marks")] = ROOT / "README.md",
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; fail where the page says otherwise")
    ] = False,
) -> None:
    """Write the section of GPU figures: forward and backward of every fused op and case.

    Exit status: 0 written or as it should be, 1 the page says otherwise, 2 wrong usage.
    """
    paths = results or sorted(RESULTS.glob("*/ops.json"))
    text = gpu_section([run for run in map(read_results, paths) if run.environment.get("gpu")])
    if not check:
        put_section(page, SECTION, text)
        print(f"wrote the section of GPU figures into {page.name}")
    elif section_of(page, SECTION) != text:
        print(f"{page.name} does not tell what the result files do: run `svilm bench table`")
        raise typer.Exit(int(ExitCode.REGRESSION))


def gpu_section(runs: Sequence[Results]) -> str:
    """The text of the section; says so where no GPU has been measured."""
    return "\n\n".join(map(_of_gpu, runs)) if runs else NOTHING


def _of_gpu(results: Results) -> str:
    facts = results.environment
    changed = ", changed" if results.dirty else ""
    stopped = "" if results.complete else " The run was stopped before its end."
    rows = [row for row in rows_of(results) if row.direction == "both"]
    peers = [
        name for name in PEERS if any(row.provider == name and not row.skipped for row in rows)
    ]
    head = ["op", "case", "dtype", "time", "rate", "of the ceiling", "extra memory", *peers]
    lines = [
        f"{facts['gpu']}, PyTorch {facts.get('torch')}, Triton {facts.get('triton')}, commit "
        f"{str(facts.get('commit') or 'unknown')[:12]}{changed}; forward and backward, L2 cold. "
        f"Peers: their time over ours.{stopped}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        if row.provider == "fused" and not row.skipped:
            lines.append("| " + " | ".join([*_figures(row), *_ratios(row, rows, peers)]) + " |")
    return "\n".join(lines)


def _figures(row: Row) -> list[str]:
    if row.ms is None:
        return [row.name, row.case, row.dtype, row.status, "", "", ""]
    amount, unit = (row.flops, "FLOP/s") if row.binds == "product" else (row.bytes, "B/s")
    rate = "" if amount is None else rate_text(amount / (row.ms * 1e-3), unit)
    share = percent_text(row.floor_fraction)
    told = f"{share} ({row.binds})" if share else ""
    return [row.name, row.case, row.dtype, time_text(row.ms), rate, told, bytes_text(row.memory)]


def _ratios(own: Row, rows: Sequence[Row], peers: Sequence[str]) -> list[str]:
    """Each peer's time over ours on the same case; its status where it gave no figure."""
    same = {
        row.provider: row
        for row in rows
        if (row.name, row.case, row.dtype) == (own.name, own.case, own.dtype)
    }
    found = []
    for name in peers:
        peer = same.get(name)
        if peer is None or peer.skipped:
            found.append("")
        elif peer.ms and own.ms:
            found.append(ratio_text(peer.ms / own.ms))
        else:
            found.append(peer.status)
    return found
