"""The registered benchmarks, which all runners, gates and reports share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch

from svilm_fast.bench.errors import NoSuchBenchmark
from svilm_fast.bench.suites.benchmark import SUITES, Benchmark
from svilm_fast.core.messages import check_known


def benchmarks(
    suites: Sequence[str] | None, device: torch.device, only: str | None = None
) -> dict[str, Benchmark]:
    """Benchmarks by id, in the order in which they run; allocates no tensor.

    Args:
        suites: names among `SUITES`; None takes all.
        device: decides shapes, dtypes and providers.
        only: a shell pattern that the id must match (`*` also crosses `/`).

    Raises:
        NoSuchBenchmark: an unknown suite, or a pattern without a match.
    """
    names = tuple(SUITES if suites is None else suites)
    try:
        check_known("suite", names, SUITES)
    except ValueError as error:
        raise NoSuchBenchmark(str(error)) from None
    found: dict[str, Benchmark] = {}
    for name in dict.fromkeys(names):
        for benchmark in _declared(name, device):
            if benchmark.id in found:
                raise ValueError(f"benchmark {benchmark.id} registers twice")
            found[benchmark.id] = benchmark
    chosen = {id: one for id, one in found.items() if only is None or fnmatchcase(id, only)}
    if only is not None and not chosen:
        raise NoSuchBenchmark(
            f"no benchmark of {', '.join(names)} matches {only!r}: `svilm bench run --list` lists "
            "the ids"
        )
    return chosen


def release(*, keep: str | None = None) -> None:
    """Free the tensors that suites keep between benchmarks, except those of suite `keep`."""
    for name in SUITES:
        module = sys.modules.get(f"{__name__}.{name}")
        free = getattr(module, "release", None)
        if name != keep and free is not None:
            free()


def _declared(suite: str, device: torch.device) -> Iterable[Benchmark]:
    return importlib.import_module(f"{__name__}.{suite}").declared(device)
