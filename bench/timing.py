"""Times calls on a device: events and a cold L2 on CUDA, the wall clock on CPU."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from svilm_fast.bench.memory import peak_extra_bytes

FLUSH_BYTES = 256 * 2**20
_LONG = 3


@dataclass(frozen=True)
class Timing:
    """Samples of one call in milliseconds, and its peak of extra memory in bytes.

    `order` holds the position of each sample among all that were timed together.
    """

    samples_ms: tuple[float, ...]
    peak_extra_bytes: int | None
    order: tuple[int, ...] = ()

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
    memory: bool = True,
) -> Timing:
    """Time `call` after a warm-up of two calls, for about `budget_s` seconds of calls.

    On CUDA a buffer larger than L2 is cleared before each call, which also hides launch latency.
    The peak comes from a separate call. Long calls are repeated less: with `most` up to 3 the call
    for the peak is the warm-up, with 1 it is also the sample.
    """
    if most == 1:
        samples: list[float] = []
        held = peak_extra_bytes(lambda: samples.extend(timed([call], device)), device)
        return Timing(tuple(samples), held, (0,))
    if most <= _LONG:
        held = peak_extra_bytes(call, device)
        return Timing(tuple(timed([call] * most, device)), held, tuple(range(most)))
    call()
    call()
    peak = peak_extra_bytes(call, device) if memory else None
    count = sample_count(timed([call], device)[0], budget_s, most, least)
    return Timing(tuple(timed([call] * count, device)), peak, tuple(range(count)))


def measure_together(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    budget_s: float = 0.5,
    most: int = 100,
    least: int = 5,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time several calls in rounds, each round in a random order drawn from `seed`.

    A temporary disturbance then affects all calls alike, so their ratios hold. Takes about
    `budget_s` seconds for each call.
    """
    peaks = {}
    for name, call in calls.items():
        call()
        call()
        peaks[name] = peak_extra_bytes(call, device)
    first = sum(timed(list(calls.values()), device)) / len(calls)
    shuffled = random.Random(seed)
    turns: list[str] = []
    for _ in range(sample_count(first, budget_s, most, least)):
        turns += shuffled.sample(list(calls), len(calls))
    samples = timed([calls[name] for name in turns], device)
    found = {}
    for name in calls:
        places = tuple(place for place, turn in enumerate(turns) if turn == name)
        found[name] = Timing(tuple(samples[place] for place in places), peaks[name], places)
    return found


def timed(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Milliseconds of each call; the calls run in order."""
    if device.type != "cuda":
        samples = []
        for call in calls:
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
        return samples
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
    for call, (start_event, end_event) in zip(calls, events, strict=True):
        flush.zero_()
        start_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return [start_event.elapsed_time(end_event) for start_event, end_event in events]


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


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call, of all threads."""
    before = time.process_time()
    call()
    return time.process_time() - before


def sample_count(first_ms: float, budget_s: float, most: int, least: int = 5) -> int:
    """The number of samples of a call of `first_ms` that fit the budget."""
    return int(min(most, max(min(least, most), budget_s * 1e3 / max(first_ms, 1e-3))))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
