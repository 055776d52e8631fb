"""Compares providers that were timed in interleaved rounds: ratios of time and of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svilm_fast.bench.intervals import bootstrap_interval
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.text import differences, status_text
from svilm_fast.bench.tables import markdown_row, markdown_table
from svilm_fast.core.units import bytes_text, time_text

_NUMBERS = ("median", "time / ours (99 %)", "peak memory", "memory / ours", "error")
_COLUMNS = ("op and case", "direction", "provider", *_NUMBERS)
HEAD = markdown_row(_COLUMNS)


@dataclass(frozen=True)
class Ratio:
    """A peer over our path, on the same tensors in the same rounds; above 1 the peer needs more.

    `time` is the median of the rounds' ratios, `interval` its 99 % bootstrap interval.
    """

    case: str
    direction: str
    provider: str
    ours: str
    time: float
    interval: tuple[float, float]
    memory: float | None


def ratios(records: Iterable[Record], ours: str) -> list[Ratio]:
    """Every measured peer over `ours` in the same op, case and direction."""
    groups: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in records:
        key = (record.name, record.case, record.direction)
        groups.setdefault(key, {})[record.provider] = record
    found = []
    for (name, case, direction), group in groups.items():
        own = group.get(ours)
        if own is None or not own.measured:
            continue
        for provider, record in group.items():
            if provider != ours and record.measured:
                time, interval = _paired(record.samples_ms, own.samples_ms)
                memory = None
                if record.peak_extra_bytes is not None and own.peak_extra_bytes:
                    memory = record.peak_extra_bytes / own.peak_extra_bytes
                found.append(
                    Ratio(f"{name}/{case}", direction, provider, ours, time, interval, memory)
                )
    return found


def as_json(found: Iterable[Ratio]) -> list[dict[str, Any]]:
    """The ratios as the result file holds them."""
    return [asdict(ratio) for ratio in found]


def markdown(records: Iterable[Record], found: Iterable[Ratio]) -> str:
    """A table of all providers; ratios are peer over ours. Below it, which peers differ."""
    records = list(records)
    by_id = {(ratio.case, ratio.direction, ratio.provider): ratio for ratio in found}
    rows = []
    for record in records:
        case = f"{record.name}/{record.case}"
        ratio = by_id.get((case, record.direction, record.provider))
        rows.append([case, record.direction, record.provider, *_figures(record, ratio)])
    lines = markdown_table(_COLUMNS, rows, right=_NUMBERS)
    return "\n".join([*lines, *_below(differences(records))]) + "\n"


def _below(sentences: list[str]) -> list[str]:
    return ["", "Not the op itself:", "", *(f"- {text}" for text in sentences)] if sentences else []


def _figures(record: Record, ratio: Ratio | None) -> list[str]:
    if record.time_ms is None:
        return [status_text(record), "", "", "", ""]
    time, memory = "1", "1"
    if ratio is not None:
        low, high = ratio.interval
        time = f"{ratio.time:.2f} ({low:.2f} to {high:.2f})"
        memory = "" if ratio.memory is None else f"{ratio.memory:.2f}"
    error = "" if record.error is None else f"{record.error:.0e}"
    peak = bytes_text(record.peak_extra_bytes)
    return [time_text(record.time_ms), time, peak, memory, error]


def _paired(peer: tuple[float, ...], own: tuple[float, ...]) -> tuple[float, tuple[float, float]]:
    """The median of the rounds' ratios with its interval, computed on logarithms."""
    logarithms = np.log(np.asarray(peer) / np.asarray(own))
    low, high = np.exp(bootstrap_interval([logarithms], np.median, 0.99))
    return float(np.exp(np.median(logarithms))), (float(low), float(high))
