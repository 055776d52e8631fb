"""Proves each benchmark right on its own tensors, then times it; whatever fails is a record."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.environment import gpu_state
from svilm_fast.bench.memory import memory_source
from svilm_fast.bench.run.record import SCHEMA, Record
from svilm_fast.bench.suites.benchmark import Benchmark, Prepared, Skipped, WrongResult
from svilm_fast.bench.timing import Timing, host_time_us, measure, measure_together

# Suites whose calls do no work on the device, so that its ceilings say nothing of them.
_HOST_SUITES = ("data", "host")


def run(
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    budget_s: float,
    deadline_s: float = float("inf"),
) -> Iterator[Record]:
    """Measure one benchmark after the other; those past the deadline are records too."""
    start = time.monotonic()
    for position, benchmark in enumerate(benchmarks):
        if time.monotonic() - start > deadline_s:
            record = blank(benchmark, "skipped: the deadline of the run had passed")
        else:
            record = run_one(benchmark, device, ceilings, budget_s=budget_s)
        yield replace(record, position=position)


def run_one(
    benchmark: Benchmark, device: torch.device, ceilings: Ceilings | None, *, budget_s: float
) -> Record:
    """Measure one benchmark."""
    [record] = run_together([benchmark], device, ceilings, budget_s=budget_s)
    return record


def run_together(
    benchmarks: list[Benchmark],
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    budget_s: float,
    most: int = 100,
) -> list[Record]:
    """Measure benchmarks in interleaved rounds, so that their ratios hold on a busy machine."""
    proven: dict[str, tuple[Prepared, float | None]] = {}
    records: dict[str, Record] = {}
    for benchmark in benchmarks:
        try:
            proven[benchmark.id] = _prove(benchmark, device)
        except Exception as failure:
            records[benchmark.id] = failed(benchmark, failure)
    try:
        timings = _time(
            {id: prepared for id, (prepared, _) in proven.items()}, device, budget_s, most
        )
        for benchmark in benchmarks:
            if benchmark.id in records:
                continue
            outcome = timings[benchmark.id]
            if isinstance(outcome, Exception):
                records[benchmark.id] = failed(benchmark, outcome)
                continue
            prepared, error = proven[benchmark.id]
            timing, host_us = outcome
            records[benchmark.id] = measured(
                benchmark, prepared, timing, device, ceilings, error=error, host_us=host_us
            )
    finally:
        for prepared, _ in proven.values():
            prepared.close()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return [records[benchmark.id] for benchmark in benchmarks]


def _prove(benchmark: Benchmark, device: torch.device) -> tuple[Prepared, float | None]:
    prepared = benchmark.prepare(device)
    try:
        return prepared, prepared.verify()
    except BaseException:
        prepared.close()
        raise


def _time(
    chosen: dict[str, Prepared], device: torch.device, budget_s: float, most: int
) -> dict[str, tuple[Timing, float | None] | Exception]:
    if not chosen:
        return {}
    outcomes: dict[str, tuple[Timing, float | None] | Exception] = {}
    gc.collect()
    if len(chosen) == 1:
        [(id, prepared)] = chosen.items()
        try:
            least = min(most, prepared.most_samples or most)
            timing = measure(
                prepared.call,
                device,
                budget_s=budget_s,
                most=least,
                memory=id.split("/")[0] not in _HOST_SUITES,
            )
            outcomes[id] = (timing, _host_us(id, prepared, timing, device, budget_s))
        except Exception as failure:
            outcomes[id] = failure
        return outcomes
    calls = {id: prepared.call for id, prepared in chosen.items()}
    try:
        together = measure_together(calls, device, budget_s=budget_s, most=most)
    except Exception as failure:
        return dict.fromkeys(chosen, failure)
    return {id: (timing, None) for id, timing in together.items()}


def _host_us(
    id: str, prepared: Prepared, timing: Timing, device: torch.device, budget_s: float
) -> float | None:
    # On a CPU the call is the host's work itself; a step is too long to repeat for this figure.
    if device.type != "cuda" or "/forward/" not in id or prepared.most_samples == 1:
        return None
    fitting = int(budget_s * 1e3 / max(timing.median_ms, 1e-3))
    return host_time_us(prepared.call, device, count=min(50, max(3, fitting)))


def blank(benchmark: Benchmark, status: str, error: float | None = None) -> Record:
    """The record of a benchmark without a figure."""
    return Record(id=benchmark.id, **benchmark.parts, status=status, error=error)


def failed(benchmark: Benchmark, failure: Exception) -> Record:
    """The record of a benchmark that gave no figure, from what was raised."""
    if isinstance(failure, Skipped):
        return blank(benchmark, f"skipped: {failure}")
    if isinstance(failure, WrongResult):
        record = blank(benchmark, "wrong_result", failure.error)
        return replace(record, facts={"reason": str(failure)})
    first_line = f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"
    status = f"failed: {first_line}"
    if isinstance(failure, torch.OutOfMemoryError):
        status = "oom"
    elif "compil" in type(failure).__name__.lower() or type(failure).__module__.startswith(
        ("triton.compiler", "torch._inductor", "torch._dynamo")
    ):
        status = "compile_error"
    return replace(blank(benchmark, status), facts={"reason": first_line})


def measured(
    benchmark: Benchmark,
    prepared: Prepared,
    timing: Timing,
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    error: float | None,
    host_us: float | None = None,
) -> Record:
    """The record of a benchmark that was timed."""
    seconds = timing.median_ms * 1e-3
    on_device = benchmark.suite not in _HOST_SUITES
    fractions = {}
    if prepared.cost is not None:
        fractions = {"flops": prepared.cost.flops, "bytes": prepared.cost.bytes}
        if ceilings is not None and on_device:
            fractions |= {
                "product_fraction": prepared.cost.flops / seconds / ceilings.product_flops,
                "copy_fraction": prepared.cost.bytes / seconds / ceilings.copy_bytes,
            }
    return Record(
        id=benchmark.id,
        **benchmark.parts,
        status="ok",
        mode="cold" if device.type == "cuda" else "warm",
        error=error,
        samples_ms=timing.samples_ms,
        order=timing.order,
        median_ms=timing.median_ms,
        p20_ms=timing.quantile(0.2),
        p80_ms=timing.quantile(0.8),
        host_us=host_us,
        peak_extra_bytes=timing.peak_extra_bytes,
        memory_source=None if timing.peak_extra_bytes is None else memory_source(device),
        rates_per_s={unit: count / seconds for unit, count in prepared.units.items()},
        facts=dict(prepared.facts),
        **fractions,
    )


def result(
    records: Iterable[Record],
    before: dict[str, Any],
    device: torch.device,
    ceilings: Ceilings | None,
) -> dict[str, Any]:
    """The result file: the environment `before` the run, the GPU's state after it, the records."""
    after = {"gpu_state_after": gpu_state()} if device.type == "cuda" else {}
    return {
        "schema": SCHEMA,
        "environment": before | after,
        "ceilings": None if ceilings is None else asdict(ceilings),
        "records": [record.as_json() for record in records],
    }
