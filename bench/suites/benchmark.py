"""A benchmark: an id, and a function that builds the timed call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

Suite = Literal["ops", "blocks", "step", "data", "host"]
SUITES: tuple[Suite, ...] = get_args(Suite)
SEED = 0
"""Seed of everything random in a benchmark."""
ID_PARTS = ("suite", "name", "case", "dtype", "direction", "provider")


@dataclass(frozen=True)
class CallCost:
    """The floor of one timed call: FLOPs of the matrix products and the least bytes moved."""

    flops: float
    bytes: float


def _nothing() -> None:
    return None


@dataclass
class Prepared:
    """A call on tensors that are already allocated.

    Attributes:
        call: what is timed.
        verify: compares the result of `call` with the oracle on the same tensors, before anything
            is timed; returns the relative error, None without an oracle. Raises `WrongResult` if
            the error exceeds the tolerance.
        cost: the floor of a call, if there is one.
        units: the work of a call (`pairs`, `clips`, `tokens`), for rates per second.
        facts: further facts for the record (shapes, FLOPs executed).
        most_samples: the most calls that are timed; 1 for a long step.
        explain: called after timing with the median in seconds; returns further facts.
        close: frees the tensors.
    """

    call: Callable[[], object]
    verify: Callable[[], float | None]
    cost: CallCost | None = None
    units: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    most_samples: int | None = None
    explain: Callable[[float], Mapping[str, Any]] | None = None
    close: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Benchmark:
    """A registered measurement; creating one allocates no tensor.

    `id` is "suite/name/case/dtype/direction/provider" (`-` for a part that does not apply).
    `prepare(device)` raises `Skipped` if it cannot run. `background`: it works between its calls,
    so it cannot be timed in turns with another version.
    """

    id: str
    suite: Suite
    prepare: Callable[[torch.device], Prepared]
    background: bool = False

    def __post_init__(self) -> None:
        parts = self.id.split("/")
        if len(parts) != len(ID_PARTS) or not all(parts) or parts[0] != self.suite:
            raise ValueError(
                f"benchmark id {self.id!r} must be {'/'.join(ID_PARTS)} of suite {self.suite}"
            )

    @property
    def on_host(self) -> bool:
        """Whether the call does no work on the device: it is timed by the wall clock."""
        return self.suite in ("data", "host")

    @property
    def parts(self) -> dict[str, Any]:
        """The parts of the id by name: suite, name, case, dtype, direction, provider."""
        return dict(zip(ID_PARTS, self.id.split("/"), strict=True))


def benchmark_id(
    suite: Suite, name: str, case: str, dtype: str, direction: str, provider: str
) -> str:
    """The id of a benchmark from its parts."""
    return "/".join((suite, name, case, dtype, direction, provider))
