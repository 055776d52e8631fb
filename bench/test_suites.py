"""Every registered benchmark: verified on its own tensors, then timed by pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from svilm_fast.bench.errors import Skipped
from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import (
    MOST_SAMPLES,
    blank,
    failed,
    measured,
    prove,
)
from svilm_fast.bench.suites.benchmark import Benchmark
from svilm_fast.bench.timing import FLUSH_BYTES, Timing, sample_count, timed


def test_benchmark(
    benchmark: Any,
    registered: Benchmark,
    device: torch.device,
    keep: Callable[[Record], None],
    pytestconfig: pytest.Config,
) -> None:
    device = torch.device("cpu") if registered.on_host else device
    keep(blank(registered, "failed: the benchmark did not end"))
    try:
        prepared, error = prove(registered, device)
    except Skipped as reason:
        keep(failed(registered, reason))
        pytest.skip(str(reason))
    except Exception as failure:
        keep(failed(registered, failure))
        raise
    cuda = device.type == "cuda"
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if cuda else None

    def clear() -> None:
        if flush is not None:
            flush.zero_()
            torch.cuda.synchronize(device)

    def call() -> None:
        prepared.call()
        if cuda:
            torch.cuda.synchronize(device)

    try:
        once = prepared.most_samples == 1
        if not once:
            prepared.call()
        peak = None
        if not registered.on_host and not once:
            peak = peak_extra_bytes(prepared.call, device)
        rounds = 1
        if not once:
            first = timed([prepared.call], device)[0]
            budget = pytestconfig.getoption("svilm_budget")
            rounds = sample_count(first, budget, prepared.most_samples or MOST_SAMPLES)
        benchmark.pedantic(call, setup=clear, rounds=rounds, iterations=1, warmup_rounds=0)
        if benchmark.stats is None:
            keep(blank(registered, "skipped: pytest-benchmark is disabled"))
            return
        seconds = benchmark.stats.stats.data
        timing = Timing(tuple(second * 1e3 for second in seconds), peak, tuple(range(len(seconds))))
        record = measured(registered, prepared, timing, device, None, error, clock="wall")
        benchmark.extra_info["record"] = record.as_json()
        keep(record)
    except Exception as failure:
        keep(failed(registered, failure))
        raise
    finally:
        prepared.close()
