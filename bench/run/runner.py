"""Verifies each benchmark on its own tensors, then times it; a failure becomes a record."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.environment import gpu_state
from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.bench.memory import memory_source
from svilm_fast.bench.run.file import write_json
from svilm_fast.bench.run.record import SCHEMA, Clock, Record
from svilm_fast.bench.suites import release
from svilm_fast.bench.suites.benchmark import Benchmark, Prepared
from svilm_fast.bench.timing import Timing, host_time_us, measure, measure_together
from svilm_fast.kernels.launch import compiled_kernels

MOST_SAMPLES = 100
PAST_DEADLINE = "failed: the deadline of the run had passed"


class DeviceLost(RuntimeError):
    """A call left the GPU unusable for this process; only another process can continue."""


def run(
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    budget_s: float,
    deadline_s: float = float("inf"),
    starting: Callable[[Benchmark], None] = lambda _: None,
) -> Iterator[Record]:
    """Measure the benchmarks in order; those past the deadline are recorded as failures.

    starting: called before each benchmark that is measured.

    Raises DeviceLost after the record of a failure that left the GPU unusable for this process.
    """
    start = time.monotonic()
    try:
        for position, benchmark in enumerate(benchmarks):
            if time.monotonic() - start > deadline_s:
                record = blank(benchmark, PAST_DEADLINE)
            else:
                starting(benchmark)
                record = run_one(benchmark, device, ceilings, budget_s=budget_s)
            yield replace(record, position=position)
            if not record.measured:
                _answers(device)
    finally:
        release()


def run_into(
    path: Path,
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    ceilings: Ceilings | None,
    facts: dict[str, Any],
    *,
    budget_s: float,
    deadline_s: float = float("inf"),
    earlier: Iterable[Record] = (),
    starting: Callable[[Benchmark], None] = lambda _: None,
    done: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """`run` that rewrites the result file after each record, so that a stopped run loses none.

    Args:
        path: the result file.
        facts: the environment before the run.
        earlier: records that the file already holds, or of benchmarks that are left out.
        starting: called before each benchmark that is measured.
        done: called with each record.
    """
    records = list(earlier)
    for record in run(
        benchmarks, device, ceilings, budget_s=budget_s, deadline_s=deadline_s, starting=starting
    ):
        records.append(replace(record, position=len(records)))
        # Records past the deadline come in large numbers; the last write contains them.
        if record.status != PAST_DEADLINE:
            write_json(path, result(records, facts, device, ceilings, complete=False))
        done(record)
    write_json(path, result(records, facts, device, ceilings))
    return records


def _answers(device: torch.device) -> None:
    """Raise DeviceLost if an earlier call left the GPU unusable for this process."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as failure:
        raise DeviceLost(f"{device} is unusable for this process: {failure}") from failure


def run_one(
    benchmark: Benchmark, device: torch.device, ceilings: Ceilings | None, *, budget_s: float
) -> Record:
    """Measure one benchmark."""
    device = torch.device("cpu") if benchmark.on_host else device
    try:
        prepared, error = prove(benchmark, device)
    except Exception as failure:
        return failed(benchmark, failure)
    try:
        gc.collect()
        timing = measure(
            prepared.call,
            device,
            budget_s=budget_s,
            most=prepared.most_samples or MOST_SAMPLES,
            memory=not benchmark.on_host,
        )
        host_us = _host_us(benchmark, prepared, timing, device, budget_s)
        kernels = started_kernels(prepared, device)
        return measured(
            benchmark, prepared, timing, device, ceilings, error, host_us, kernels=kernels
        )
    except Exception as failure:
        return failed(benchmark, failure)
    finally:
        _close([prepared], device)


def run_together(
    benchmarks: list[Benchmark],
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    budget_s: float,
    least: int = 5,
) -> list[Record]:
    """Measure benchmarks in interleaved rounds, so that their ratios hold on a busy machine.

    A benchmark that fails while it is timed is closed, and the rounds restart without it.
    """
    proven: dict[str, tuple[Prepared, float | None]] = {}
    records: dict[str, Record] = {}
    for benchmark in benchmarks:
        try:
            proven[benchmark.id] = prove(benchmark, device)
        except Exception as failure:
            records[benchmark.id] = failed(benchmark, failure)
    try:
        while left := [benchmark for benchmark in benchmarks if benchmark.id not in records]:
            running: list[str] = []
            calls = {one.id: _noted(one.id, proven[one.id][0].call, running) for one in left}
            try:
                timings = measure_together(calls, device, budget_s=budget_s, least=least)
            except Exception as failure:
                # If no call was running, the failure belongs to all of them.
                for benchmark in left:
                    if not running or benchmark.id in running:
                        records[benchmark.id] = failed(benchmark, failure)
                        _close([proven.pop(benchmark.id)[0]], device)
                continue
            for benchmark in left:
                prepared, error = proven[benchmark.id]
                try:
                    kernels = started_kernels(prepared, device)
                except Exception as failure:
                    records[benchmark.id] = failed(benchmark, failure)
                    continue
                timing = timings[benchmark.id]
                records[benchmark.id] = measured(
                    benchmark, prepared, timing, device, ceilings, error, kernels=kernels
                )
    finally:
        _close([prepared for prepared, _ in proven.values()], device)
    return [records[benchmark.id] for benchmark in benchmarks]


def _noted(id: str, call: Callable[[], object], running: list[str]) -> Callable[[], object]:
    """The call, with its id in `running` until it has returned."""

    def noted() -> object:
        running.append(id)
        value = call()
        running.pop()
        return value

    return noted


def prove(benchmark: Benchmark, device: torch.device) -> tuple[Prepared, float | None]:
    """Prepare and verify a benchmark; returns it with its relative error (None: no oracle)."""
    release(keep=benchmark.suite)
    prepared = benchmark.prepare(device)
    try:
        return prepared, prepared.verify()
    except BaseException:
        prepared.close()
        raise


def started_kernels(prepared: Prepared, device: torch.device) -> tuple[dict[str, Any], ...]:
    """Static metrics of our kernels that a call starts on a GPU, in order and without repeats."""
    if device.type != "cuda":
        return ()
    with compiled_kernels() as started:
        prepared.call()
    torch.cuda.synchronize(device)
    return metrics_of(started)


def metrics_of(started: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """Metrics of the compiled kernels without repeats; the interpreter gives None."""
    return tuple({one.hash: kernel_metrics(one) for one in started if one is not None}.values())


def kernel_metrics(compiled: Any) -> dict[str, Any]:
    """Triton's metrics of a compiled kernel; a spilled register has four bytes."""
    return {
        "kernel": compiled.name,
        "hash": compiled.hash,
        "registers": compiled.n_regs,
        "spilled_registers": compiled.n_spills,
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
    }


def _close(chosen: list[Prepared], device: torch.device) -> None:
    for prepared in chosen:
        prepared.close()
    if device.type == "cuda":
        # This also raises after an illegal access; `run` reports that after writing the record.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _host_us(
    benchmark: Benchmark,
    prepared: Prepared,
    timing: Timing,
    device: torch.device,
    budget_s: float,
) -> float | None:
    # On a CPU the call is host work anyway, and a step is too long to repeat.
    forward = benchmark.parts["direction"] == "forward"
    if device.type != "cuda" or not forward or prepared.most_samples == 1:
        return None
    fitting = int(budget_s * 1e3 / max(timing.median_ms, 1e-3))
    return host_time_us(prepared.call, device, count=min(50, max(3, fitting)))


def blank(benchmark: Benchmark, status: str, error: float | None = None) -> Record:
    """The record of a benchmark without a figure."""
    return Record(id=benchmark.id, **benchmark.parts, status=status, error=error)


def failed(benchmark: Benchmark, failure: Exception) -> Record:
    """The record of a benchmark that raised an exception."""
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
    error: float | None,
    host_us: float | None = None,
    *,
    kernels: tuple[dict[str, Any], ...] = (),
    clock: Clock | None = None,
) -> Record:
    """The record of a timed benchmark; `clock` defaults to that of the device."""
    seconds = timing.median_ms * 1e-3
    more = {} if prepared.explain is None else prepared.explain(seconds)
    fractions: dict[str, Any] = {}
    if prepared.cost is not None:
        fractions = {"flops": prepared.cost.flops, "bytes": prepared.cost.bytes}
        if ceilings is not None and not benchmark.on_host:
            fractions |= {
                "product_fraction": prepared.cost.flops / seconds / ceilings.product_flops,
                "copy_fraction": prepared.cost.bytes / seconds / ceilings.copy_bytes,
            }
    return Record(
        id=benchmark.id,
        **benchmark.parts,
        status="ok",
        mode="cold" if device.type == "cuda" else "warm",
        clock=clock or ("events" if device.type == "cuda" else "wall"),
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
        kernels=kernels,
        facts=dict(prepared.facts) | dict(more),
        **fractions,
    )


def result(
    records: Iterable[Record],
    before: dict[str, Any],
    device: torch.device,
    ceilings: Ceilings | None,
    *,
    complete: bool = True,
) -> dict[str, Any]:
    """The result file: the environment `before` the run, the GPU's state after it, the records.

    complete: False during the run; a stopped run leaves such a file.
    """
    # An unfinished file is written often, and reading the GPU's state starts a process.
    after = {"gpu_state_after": gpu_state(device)} if complete and device.type == "cuda" else {}
    return {
        "schema": SCHEMA,
        "complete": complete,
        "environment": before | after,
        "ceilings": None if ceilings is None else asdict(ceilings),
        "records": [record.as_json() for record in records],
    }
