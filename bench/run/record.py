"""One measurement, with the facts that are needed to check it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from svilm_fast.bench.suites.benchmark import ID_PARTS, SEED

SCHEMA = 1
Clock = Literal["events", "wall"]
# This project's own providers; every other one is a peer.
OWN_PROVIDERS = ("fused", "gluon", "reference", "svilm")
# The names of sizes that count pairs or clips.
BATCH_SIZES = ("batch", "videos", "texts")


@dataclass(frozen=True)
class Record:
    """A measurement. `status` is `ok`, or the reason why there is no figure.

    Statuses: `ok`, `oom`, `compile_error`, `wrong_result`, `skipped: <reason>`,
    `failed: <reason>`. `error` is the relative error against the oracle on the same tensors,
    checked before timing; None without an oracle. `mode` is `cold` if L2 was flushed before each
    call, else `warm`. `clock` is `events` (CUDA events) or `wall`, which on a GPU includes launch
    and synchronisation. `order` is the position of each sample among all that were timed together.
    `product_fraction` and `copy_fraction` compare the floor (FLOPs, least bytes) with the ceilings
    that the same run measured; `floor_fraction` is the larger one, which binds. `seed` is that of
    the tensors. `kernels` are our kernels that a call starts on a GPU, as compiled: registers,
    spills, shared memory, and the hash of the machine code's source.
    """

    id: str
    suite: str
    name: str
    case: str
    dtype: str
    direction: str
    provider: str
    status: str
    position: int = 0
    seed: int = SEED
    unit: str = "ms"
    mode: str = "warm"
    clock: Clock | None = None
    error: float | None = None
    samples_ms: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    host_us: float | None = None
    peak_extra_bytes: int | None = None
    memory_source: str | None = None
    flops: float | None = None
    bytes: float | None = None
    product_fraction: float | None = None
    copy_fraction: float | None = None
    kernels: Sequence[Mapping[str, Any]] = ()
    rates_per_s: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether there is a figure."""
        return self.status == "ok"

    @property
    def skipped(self) -> bool:
        """Whether it could not run here, which is not a failure."""
        return self.status.startswith("skipped")

    @property
    def time_ms(self) -> float | None:
        """The median in milliseconds; None unless the status is `ok` and it is a positive time."""
        return self.median_ms if self.measured and (self.median_ms or 0) > 0 else None

    @property
    def floor_fraction(self) -> float | None:
        """The fraction of the binding ceiling that was reached."""
        if self.product_fraction is None or self.copy_fraction is None:
            return None
        return max(self.product_fraction, self.copy_fraction)

    @property
    def binding_ceiling(self) -> str:
        """The ceiling that binds, `product` or `copy`; empty if unknown."""
        if self.product_fraction is None or self.copy_fraction is None:
            return ""
        return "product" if self.product_fraction >= self.copy_fraction else "copy"

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of the floor."""
        return self.flops / self.bytes if self.flops and self.bytes else None

    @property
    def flops_per_s(self) -> float | None:
        """FLOPs of the floor per second of the median."""
        return self.flops / (self.time_ms * 1e-3) if self.flops and self.time_ms else None

    @property
    def shape(self) -> Mapping[str, Any]:
        """The named sizes of a call; empty if the facts have none."""
        shape = self.facts.get("shape")
        return shape if isinstance(shape, Mapping) else {}

    @property
    def batch(self) -> int | None:
        """Pairs or clips of a call."""
        sizes = [int(self.shape[name]) for name in BATCH_SIZES if name in self.shape]
        return sizes[0] if sizes else None

    @property
    def other_sizes(self) -> tuple[tuple[str, str], ...]:
        """The shape without its batch sizes; rectangular blocks keep their second side."""
        square = len({self.shape[name] for name in BATCH_SIZES if name in self.shape}) == 1
        dropped = BATCH_SIZES if square else BATCH_SIZES[:2]
        kept = {name: str(value) for name, value in self.shape.items() if name not in dropped}
        return tuple(sorted(kept.items()))

    def as_json(self) -> dict[str, Any]:
        """The record as the result file holds it."""
        return asdict(self) | {"floor_fraction": self.floor_fraction}

    @classmethod
    def from_json(cls, written: Any) -> Record:
        """The record of a result file.

        A value that is not a finite number (true, NaN, infinity, text) becomes None, so that it is
        never taken for a measurement. Raises ValueError without a status or an id of six parts.
        """
        if not isinstance(written, Mapping) or not {"id", "status"} <= written.keys():
            raise ValueError(f"a record lacks id or status: {str(written)[:80]}")
        parts = str(written["id"]).split("/")
        if len(parts) != len(ID_PARTS):
            raise ValueError(f"a record's id is not {'/'.join(ID_PARTS)}: {written['id']!r}")
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in written.items() if name in known}
        values |= dict(zip(ID_PARTS, parts)) | {"status": str(written["status"])}
        for name in _NUMBERS & values.keys():
            values[name] = _number(values[name])
        for name in ("samples_ms", "order", "kernels"):
            values[name] = tuple(values.get(name) or ())
        for name in ("rates_per_s", "facts"):
            values[name] = values.get(name) or {}
        return cls(**values)


_NUMBERS = {
    each.name for each in fields(Record) if str(each.type) in ("float | None", "int | None")
}


def _number(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and math.isfinite(value) else None
