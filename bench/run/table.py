"""Records as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.text import rates, status_text
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.units import bytes_text, time_text


def table(records: Iterable[Record]) -> Table:
    """Time, spread, fraction of the binding ceiling, memory, rate and error of each record.

    `floor` names the ceiling that binds, the product or the copy rate, and the fraction of it.
    """
    view = terminal_table(("benchmark", "median", "p20 to p80", "floor", "memory", "rate", "error"))
    for record in records:
        if record.time_ms is None:
            view.add_row(record.id, Text(status_text(record), style="red"))
            continue
        view.add_row(
            record.id,
            time_text(record.time_ms),
            _spread(record),
            _floor(record),
            bytes_text(record.peak_extra_bytes),
            ", ".join(rates(record)),
            "" if record.error is None else f"{record.error:.1e}",
        )
    return view


def _spread(record: Record) -> str:
    if record.p20_ms is None or record.p80_ms is None:
        return ""
    return f"{time_text(record.p20_ms)} to {time_text(record.p80_ms)}"


def _floor(record: Record) -> str:
    if record.floor_fraction is None:
        return ""
    return f"{record.floor_fraction:.1%} {record.binding_ceiling}"
