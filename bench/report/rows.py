"""The records of a result file as the pictures and tables read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svilm_fast.bench.compare.results import Results, figure, skipped

OWN = ("fused", "reference", "svilm")
# The sizes that count pairs or clips; what is left of a shape must be equal along one line.
BATCH_SIZES = ("batch", "videos", "texts")


@dataclass(frozen=True)
class Row:
    """One measurement; times in milliseconds, memory in bytes, None where there is no figure."""

    id: str
    suite: str
    name: str
    case: str
    dtype: str
    direction: str
    provider: str
    status: str
    ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    memory: float | None
    error: float | None
    host_us: float | None
    flops: float | None
    bytes: float | None
    product_fraction: float | None
    copy_fraction: float | None
    rates: Mapping[str, float] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether it could not run there and nothing is wrong."""
        return self.status.startswith("skipped")

    @property
    def floor_fraction(self) -> float | None:
        """Share of the ceiling that binds."""
        if self.product_fraction is None or self.copy_fraction is None:
            return None
        return max(self.product_fraction, self.copy_fraction)

    @property
    def binds(self) -> str:
        """Which ceiling that is."""
        if self.product_fraction is None or self.copy_fraction is None:
            return ""
        return "product" if self.product_fraction >= self.copy_fraction else "copy"

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of the floor."""
        return self.flops / self.bytes if self.flops and self.bytes else None

    @property
    def rate(self) -> float | None:
        """FLOP/s of the floor's FLOPs."""
        return self.flops / (self.ms * 1e-3) if self.flops and self.ms else None

    @property
    def batch(self) -> int | None:
        """Pairs or clips of a call."""
        sizes = [int(self.shape[name]) for name in BATCH_SIZES if name in self.shape]
        return sizes[0] if sizes else None

    @property
    def other_sizes(self) -> tuple[tuple[str, str], ...]:
        """The shape without what counts the batch; rectangular blocks keep their other side."""
        square = len({self.shape[name] for name in BATCH_SIZES if name in self.shape}) == 1
        dropped = BATCH_SIZES if square else BATCH_SIZES[:2]
        kept = {name: str(value) for name, value in self.shape.items() if name not in dropped}
        return tuple(sorted(kept.items()))


def rows_of(results: Results) -> list[Row]:
    """Every record as a row, in the order of the file."""
    return [_row(record) for record in results.records.values()]


def _row(record: Mapping[str, Any]) -> Row:
    suite, name, case, dtype, direction, provider = str(record["id"]).split("/")
    facts = record.get("facts") or {}
    status = str(record["status"])
    if "reason" in facts and status != "ok" and not status.endswith(str(facts["reason"])):
        status = f"{status}: {facts['reason']}"
    ms = figure(record, "median_ms")
    if record["status"] == "ok" and ms is None:
        status = "no figure"

    def number(key: str) -> float | None:
        value = record.get(key)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if good and math.isfinite(value) else None  # type: ignore[arg-type]

    return Row(
        id=record["id"],
        suite=suite,
        name=name,
        case=case,
        dtype=dtype,
        direction=direction,
        provider=provider,
        status="skipped" if skipped(record) and status == "skipped" else status,
        ms=ms,
        p20_ms=figure(record, "p20_ms"),
        p80_ms=figure(record, "p80_ms"),
        memory=number("peak_extra_bytes"),
        error=number("error"),
        host_us=figure(record, "host_us"),
        flops=figure(record, "flops"),
        bytes=figure(record, "bytes"),
        product_fraction=number("product_fraction"),
        copy_fraction=number("copy_fraction"),
        rates=record.get("rates_per_s") or {},
        shape=facts.get("shape") or {},
    )
