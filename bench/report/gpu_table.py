"""`svilm bench table`: the README's table of GPU figures, from the result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.generated_section import read_section, write_section
from svilm_fast.bench.peers import peers
from svilm_fast.bench.run.file import Results, read_results
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.text import differences, status_text
from svilm_fast.bench.tables import markdown_table
from svilm_fast.core.terminal import print
from svilm_fast.core.units import bytes_text, percent_text, rate_text, ratio_text, time_text
from svilm_fast.kernels.registry import ops

SECTION = "gpu figures"
RESULTS = ROOT / "bench" / "results"
NOTHING = (
    "**No kernel has been timed on a GPU yet**: speed, peak memory on a device, CUDA graphs and "
    "NCCL are not measured yet. `make gpu` on a machine with an NVIDIA GPU measures the ops."
)
COLUMNS = ("op", "case", "dtype", "time", "rate", "of the ceiling", "extra memory")


def table(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="result files of GPUs; default: bench/results/*/ops.json"),
    ] = None,
    page: Annotated[Path, typer.Option(help="page with the section's marks")] = ROOT / "README.md",
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; fail if the page differs")
    ] = False,
) -> None:
    """Write the README's GPU figures: forward and backward of every fused op and case.

    Exit status: 0 written or up to date, 1 the page differs, 2 wrong usage.
    """
    paths = results or sorted(RESULTS.glob("*/ops.json"))
    text = gpu_section([run for run in map(read_results, paths) if run.environment.get("gpu")])
    if not check:
        write_section(page, SECTION, text)
        print(f"wrote the section of GPU figures into {page.name}")
    elif read_section(page, SECTION) != text:
        print(f"{page.name} differs from the result files: run `svilm bench table`")
        raise typer.Exit(int(ExitCode.REGRESSION))


def gpu_section(runs: Sequence[Results]) -> str:
    """The text of the section, also if no GPU has been measured."""
    return "\n\n".join(map(_of_gpu, runs)) if runs else NOTHING


def _of_gpu(results: Results) -> str:
    facts = results.environment
    changed = ", changed" if results.dirty else ""
    stopped = "" if results.complete else " The run was stopped before its end."
    records = [record for record in results.records.values() if record.direction == "both"]
    measured = {record.provider for record in records if not record.skipped}
    compared = [name for name in _compared_with() if name in measured]
    figures = [
        [*_figures(record), *_ratios(record, records, compared)]
        for record in records
        if record.provider == "fused" and not record.skipped
    ]
    head = (
        f"{facts['gpu']}, PyTorch {facts.get('torch')}, Triton {facts.get('triton')}, commit "
        f"{str(facts.get('commit') or 'unknown')[:12]}{changed}; forward and backward, L2 cold. "
        f"Peers: their time over ours.{stopped}"
    )
    other = " ".join(differences(record for record in records if record.measured))
    below = ["", f"Not the op itself: {other}"] if other else []
    return "\n".join([head, "", *markdown_table([*COLUMNS, *compared], figures), *below])


def _compared_with() -> list[str]:
    """Our reference path, then the registered peers of all ops."""
    return ["reference", *dict.fromkeys(name for op in ops() for name in peers(op))]


def _figures(record: Record) -> list[str]:
    if record.time_ms is None:
        return [record.name, record.case, record.dtype, status_text(record), "", "", ""]
    amount, unit = (
        (record.flops, "FLOP/s") if record.binding_ceiling == "product" else (record.bytes, "B/s")
    )
    rate = rate_text(amount / (record.time_ms * 1e-3), unit) if amount else ""
    share = percent_text(record.floor_fraction)
    reached = f"{share} ({record.binding_ceiling})" if share else ""
    return [
        record.name,
        record.case,
        record.dtype,
        time_text(record.time_ms),
        rate,
        reached,
        bytes_text(record.peak_extra_bytes),
    ]


def _ratios(own: Record, records: Sequence[Record], compared: Sequence[str]) -> list[str]:
    """Each peer's time over ours on the same case; its status if it has no figure."""
    same = {
        record.provider: record
        for record in records
        if (record.name, record.case, record.dtype) == (own.name, own.case, own.dtype)
    }
    found = []
    for name in compared:
        peer = same.get(name)
        if peer is None or peer.skipped:
            found.append("")
        elif peer.time_ms and own.time_ms:
            found.append(ratio_text(peer.time_ms / own.time_ms))
        else:
            found.append(status_text(peer))
    return found
