"""`svilm bench data-index`: opening a data set by samples, as a table, JSON and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.data_index.figure import draw
from svilm_fast.bench.data_index.measure import (
    EARLIER,
    EARLIER_WORKER_BYTES,
    RANKS,
    SIZES,
    Opened,
    measure,
)
from svilm_fast.bench.data_index.positions import BATCH, Positions, measure_positions
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.run.command import RESULTS
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.units import bytes_text


def data_index(
    samples: Annotated[
        list[int] | None, typer.Option(min=1000, help="Samples; default 100000, 1e6 and 1e7.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where indexes are made and removed; 10M samples need 4 GB."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Result file; default bench/results/<machine>/data_index.json."),
    ] = None,
    figure: Annotated[Path, typer.Option(help="Picture.")] = ROOT / "docs/figures/data_index.png",
) -> None:
    """Measure time and memory of a data set's index, open in 8 ranks with a worker each.

    Sizes that the result file holds already are not measured again: remove it to start over.
    The time of finding positions of an epoch is measured in every run.
    """
    console = wide_console()
    facts = environment(torch.device("cpu"))
    path = out or RESULTS / slug(facts) / "data_index.json"
    check_replaceable(path)
    found, earlier = _measured(path)
    wanted = [size for size in samples or SIZES if size not in {each.samples for each in found}]
    for opened in measure(wanted, folder) if wanted else ():
        found = sorted([*found, opened], key=lambda each: each.samples)
        write_json(path, _result(facts, found, earlier))
    positions = list(measure_positions())
    write_json(path, _result(facts, found, positions))
    rows = terminal_table(
        ("samples", "index", "open", "row", "pickle", "rank: private, PSS", "worker: private, PSS"),
        right=("samples", "index", "open", "row"),
        title=f"{RANKS} ranks with a worker each; memory beyond a process with 1,000 samples",
    )
    for each in found:
        rows.add_row(
            f"{each.samples:,}",
            bytes_text(each.index_bytes),
            f"{each.open_s * 1e3:.1f} ms",
            f"{each.row_s * 1e6:.0f} us",
            bytes_text(each.pickle_bytes),
            f"{bytes_text(each.rank_private)}, {bytes_text(each.rank_pss)}",
            f"{bytes_text(each.worker_private)}, {bytes_text(each.worker_pss)}",
        )
    console.print(rows)
    console.print(_position_table(positions))
    draw(found, positions, figure)
    console.print(f"wrote {len(found)} sizes to {path} and the picture {figure}", soft_wrap=True)


def _position_table(positions: list[Positions]) -> Table:
    columns = ("order", "samples", "first of an epoch", "one position", f"{BATCH} positions")
    table = terminal_table(columns, right=columns[1:], title="Finding positions of an epoch")
    for each in positions:
        times = (f"{1e6 * value:,.0f} us" for value in (each.first_s, each.one_s, each.batch_s))
        table.add_row(each.order, f"{each.samples:,}", *times)
    return table


def _measured(path: Path) -> tuple[list[Opened], list[Positions]]:
    if not path.is_file() or not path.stat().st_size:
        return [], []
    stored = json.loads(path.read_text())
    opened = [Opened(**record) for record in stored["records"]]
    return opened, [Positions(**record) for record in stored.get("positions", ())]


def _result(
    facts: dict[str, Any], found: list[Opened], positions: list[Positions]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "environment": facts,
        "ranks": RANKS,
        "earlier": [{**each, "worker_bytes_per_sample": EARLIER_WORKER_BYTES} for each in EARLIER],
        "records": [each.as_dict() for each in found],
        "positions": [each.as_dict() for each in positions],
    }
