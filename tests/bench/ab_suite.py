"""Two small benchmarks that the tests of the A/B gate time; copied into a checkout's `bench/ab`.

A checkout whose library carries `EXTRA_FILE` (id -> extra units) does that many units more in each
call: the planted slowdown that the gate must find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

import svilm_fast
from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import Benchmark, Prepared, benchmark_id

UNITS = 100
EXTRA_FILE = "ab_extra_units.json"


def benchmarks(
    suites: Sequence[str] | None, device: torch.device, only: str | None = None
) -> dict[str, Benchmark]:
    """The benchmarks by id; `suites` is an argument of the protocol and is ignored."""
    path = Path(svilm_fast.__file__).parent / EXTRA_FILE
    extra = json.loads(path.read_text()) if path.is_file() else {}
    made = [_benchmark(name, extra) for name in _UNITS]
    return {one.id: one for one in made if only is None or fnmatchcase(one.id, only)}


def _benchmark(name: str, extra: dict[str, int]) -> Benchmark:
    id = benchmark_id("host", name, f"units{UNITS}", "-", "-", "-")
    count = UNITS + extra.get(id, 0)

    def prepare(device: torch.device) -> Prepared:
        unit = _UNITS[name]()

        def call() -> None:
            for _ in range(count):
                unit()

        def verify() -> None:
            if repr(unit()) != repr(unit()):
                raise WrongResult(f"{name}: two equal units differ", float("inf"))

        return Prepared(call, verify, facts={"units": count})

    return Benchmark(id, "host", prepare)


def _json() -> Callable[[], object]:
    record = {f"key{i}": [i, float(i), str(i)] for i in range(12)}
    return lambda: json.loads(json.dumps(record))


def _sha256() -> Callable[[], object]:
    data = bytes(range(256)) * 64
    return lambda: hashlib.sha256(data).hexdigest()


_UNITS: dict[str, Callable[[], Callable[[], object]]] = {
    "json": _json,
    "sha256": _sha256,
}
