"""One measurement, with what is needed to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from svilm_fast.bench.suites.benchmark import SEED

SCHEMA = 1
Clock = Literal["events", "wall"]


@dataclass(frozen=True)
class Record:
    """A measurement. `status` is `ok`, or why there is no figure: a failure is not a number.

    Statuses: `ok`, `oom`, `compile_error`, `wrong_result`, `skipped: <reason>`,
    `failed: <reason>`. `error` is the relative error against the oracle on the same tensors, proven
    before the clock started; None where nothing exists to compare with. `mode` is `cold` where L2
    was flushed before each call, else `warm`. `clock` is `events` (of CUDA) or `wall`, which on a
    GPU holds launch and synchronisation too. `order` gives each sample's turn among all that was
    timed together. `product_fraction` and `copy_fraction` compare the floor (FLOPs, least bytes)
    with the ceilings that the same run measured; `floor_fraction` is the larger, that which binds.
    `seed` is that of the tensors. `kernels` are our kernels that a call starts on a GPU, as they
    were compiled: registers, spills, shared memory, and the hash of the machine code's source.
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
    def floor_fraction(self) -> float | None:
        """Share of the binding ceiling that was reached."""
        if self.product_fraction is None or self.copy_fraction is None:
            return None
        return max(self.product_fraction, self.copy_fraction)

    @property
    def measured(self) -> bool:
        """Whether there is a figure."""
        return self.status == "ok"

    @property
    def skipped(self) -> bool:
        """Whether it could not run here and nothing is wrong."""
        return self.status.startswith("skipped")

    def as_json(self) -> dict[str, Any]:
        """What is written."""
        return asdict(self) | {"floor_fraction": self.floor_fraction}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Record:
        """The record of which `as_json` was written."""
        return cls(**{name: value for name, value in written.items() if name != "floor_fraction"})
