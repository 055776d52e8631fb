"""Times calls on a device: events and a cold L2 on CUDA, the wall clock on CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Timing:
    """Samples of one call in milliseconds, and the extra memory that it needed in bytes."""

    samples_ms: tuple[float, ...]
    peak_extra_bytes: int | None

    def quantile(self, q: float) -> float:
        """The q-quantile of the samples in milliseconds (0 <= q <= 1)."""
        return float(torch.tensor(self.samples_ms, dtype=torch.float64).quantile(q))

    @property
    def median_ms(self) -> float:
        return self.quantile(0.5)


def measure(
    call: Callable[[], object],
    device: torch.device,
    *,
    budget_s: float = 0.5,
    most: int = 100,
    least: int = 5,
) -> Timing:
    """Time `call` after a warm-up of two calls, for about `budget_s` seconds of calls.

    On CUDA a buffer larger than L2 is cleared before each call, which also hides launch latency of
    calls that are long enough; the peak is that of a call of its own.
    """
    call()
    call()
    peak = _peak_extra_bytes(call, device)
    first = _timed(call, device, 1)[0]
    count = int(min(most, max(least, budget_s * 1e3 / max(first, 1e-3))))
    return Timing(tuple(_timed(call, device, count)), peak)


def host_time_us(call: Callable[[], object], device: torch.device, *, count: int = 200) -> float:
    """Median microseconds until `call` returns to the host, the device idle before each call."""
    call()
    samples = []
    for _ in range(count):
        _synchronize(device)
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    _synchronize(device)
    return float(torch.tensor(samples, dtype=torch.float64).median())


def _timed(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    if device.type != "cuda":
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
        return samples
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start_event, end_event in events:
        flush.zero_()
        start_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return [start_event.elapsed_time(end_event) for start_event, end_event in events]


def _peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
