"""What a benchmark is: an id, and how to build the call that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

Suite = Literal["ops", "blocks", "step", "data", "host"]
SUITES: tuple[Suite, ...] = get_args(Suite)
SEED = 0
"""Of everything that a benchmark draws."""
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
    """A call on tensors that exist already.

    Attributes:
        call: what is timed.
        verify: proves `call` right on the same tensors, before the clock starts; returns the
            relative error against the oracle, None where there is no oracle to compare with.
            Raises `WrongResult` past the bar.
        cost: the floor of a call, if there is one.
        units: what a call works through (`pairs`, `clips`, `tokens`), for rates per second.
        facts: what else the record should tell (shapes, FLOPs executed, what was verified).
        most_samples: calls that are timed at most; 1 for a step that takes long.
        explain: called once the call was timed, with the median in seconds; gives further facts.
        close: frees what `prepare` made.
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
    """A registered measurement; making one builds no tensor.

    `id` is "suite/name/case/dtype/direction/provider" (a `-` where a part means nothing).
    `prepare(device)` raises `Skipped` where it cannot run. `background` says that it keeps
    working between its calls, so that it cannot be timed in turns with another version.
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
    def parts(self) -> dict[str, Any]:
        """The id taken apart: suite, name, case, dtype, direction, provider."""
        return dict(zip(ID_PARTS, self.id.split("/"), strict=True))


def benchmark_id(
    suite: Suite, name: str, case: str, dtype: str, direction: str, provider: str
) -> str:
    """The id of a benchmark from its parts."""
    return "/".join((suite, name, case, dtype, direction, provider))
