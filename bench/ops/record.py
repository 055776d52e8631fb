"""One measurement of one provider, with what is needed to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """A measurement. `status` is `ok`, or why there is no figure: a failure is not a number.

    Times are milliseconds, memory bytes; `product_fraction` and `copy_fraction` compare the op's
    floor (FLOPs, least bytes) with the ceilings that the same run measured.
    """

    op: str
    case: str
    shape: dict[str, Any]
    dtype: str
    provider: str
    direction: str
    status: str
    error: float | None = None
    samples_ms: tuple[float, ...] = ()
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    host_us: float | None = None
    peak_extra_bytes: int | None = None
    product_fraction: float | None = None
    copy_fraction: float | None = None

    @property
    def id(self) -> str:
        """What identifies the measurement across runs."""
        return f"{self.op}/{self.case}/{self.dtype}/{self.direction}/{self.provider}"
