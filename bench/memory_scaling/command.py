"""`svilm bench memory`: peak memory against the global batch, as a table, JSON and a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.memory_scaling.figure import draw
from svilm_fast.bench.memory_scaling.measure import Peak, memory_source, peaks, scaling_exponents
from svilm_fast.bench.run.command import RESULTS, chosen_device
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.units import bytes_text


def memory(
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if available.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Result file; default bench/results/<machine>/memory.json.")
    ] = None,
    figure: Annotated[Path, typer.Option(help="Picture.")] = ROOT / "docs/figures/memory.png",
) -> None:
    """Measure how memory grows with the global batch, for losses and for a whole step.

    On a CPU each figure is the peak resident memory of a separate process; takes some minutes.
    """
    where = chosen_device(device)
    console = wide_console()
    facts = environment(where)
    path = out or RESULTS / slug(facts) / "memory.json"
    check_replaceable(path)
    found: list[Peak] = []
    for peak in peaks(where):
        found.append(peak)
        console.print(f"{peak.subject}/{peak.method} at {peak.batch:,}: {_size(peak)}")
    exponents = scaling_exponents(found)
    console.print(_table(found, exponents))
    result = {
        "schema": 1,
        "environment": facts,
        "source": memory_source(where),
        "growth": exponents,
        "records": [asdict(peak) for peak in found],
    }
    write_json(path, result)
    draw(found, where, figure)
    console.print(f"wrote {len(found)} records to {path} and the picture {figure}", soft_wrap=True)


def _table(found: list[Peak], exponents: dict[str, float]) -> Table:
    table = terminal_table(
        ("subject", "method", "k", "global batch: peak"),
        right=("k",),
        title="peak memory by global batch; memory ~ batch^k over the last three sizes",
    )
    for subject, method in dict.fromkeys((peak.subject, peak.method) for peak in found):
        own = [peak for peak in found if (peak.subject, peak.method) == (subject, method)]
        power = exponents.get(f"{subject}/{method}")
        sizes = ", ".join(f"{peak.batch:,}: {_size(peak)}" for peak in own if peak.bytes)
        missing = "; ".join(dict.fromkeys(peak.status for peak in own if not peak.bytes))
        cells = [part for part in (sizes, missing) if part]
        table.add_row(subject, method, "" if power is None else f"{power:.2f}", "; ".join(cells))
    return table


def _size(peak: Peak) -> str:
    return peak.status if peak.bytes is None else bytes_text(peak.bytes)
