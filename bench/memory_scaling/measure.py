"""Peak memory of the cases, on a CPU each in a child process, and its growth."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.memory_scaling.cases import ScalingCase, cases

# Exponents are fitted to the largest batches, where the constant part matters least.
FITTED = 3
WARM_UP_BATCH = 2
# Tensors from this size on get their own pages, which are returned when they are freed.
M_MMAP_THRESHOLD, OWN_PAGES_FROM = -3, 1 << 20
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Peak memory of one case at one global batch, less that before its inputs were created."""

    subject: str
    method: str
    batch: int
    bytes: int | None
    status: str


def memory_source(device: torch.device) -> str:
    """The source of the peaks, in words."""
    if device.type == "cuda":
        return "peak of the CUDA caching allocator"
    return "peak resident memory (VmHWM) of a process of its own, one thread"


def peaks(device: torch.device, subjects: set[str] | None = None) -> Iterator[Peak]:
    """Measure every case (of these subjects) at its batches, smallest first.

    Raises RuntimeError for a CPU on a system without /proc.
    """
    if device.type == "cpu" and not STATUS.exists():
        raise RuntimeError(f"peak resident memory is read from {STATUS}, which this system lacks")
    for case in cases(device):
        if subjects is not None and case.subject not in subjects:
            continue
        for batch in case.batches:
            if case.needs_gpu and device.type != "cuda":
                yield Peak(case.subject, case.method, batch, None, "not measured yet: needs a GPU")
                continue
            yield _measured(case, batch, device)


def scaling_exponents(found: list[Peak]) -> dict[str, float]:
    """Exponent k of bytes ~ batch^k for every subject/method with enough figures."""
    points: dict[str, list[tuple[int, int]]] = {}
    for peak in found:
        if peak.bytes:
            points.setdefault(f"{peak.subject}/{peak.method}", []).append((peak.batch, peak.bytes))
    largest = {name: sorted(values)[-FITTED:] for name, values in points.items()}
    return {name: exponent(values) for name, values in largest.items() if len(values) == FITTED}


def exponent(points: list[tuple[int, int]]) -> float:
    """Slope of the least-squares line through (log batch, log bytes)."""
    batches, sizes = np.log(points).T
    return float(np.polyfit(batches, sizes, 1)[0])


def _measured(case: ScalingCase, batch: int, device: torch.device) -> Peak:
    if device.type == "cpu":
        size = child_peak(case.name, batch)
        return Peak(case.subject, case.method, batch, size, "ok")
    try:
        case.run(WARM_UP_BATCH, device)
        size = peak_extra_bytes(lambda: case.run(batch, device), device)
    except torch.cuda.OutOfMemoryError:
        return Peak(case.subject, case.method, batch, None, "out of memory")
    finally:
        torch.cuda.empty_cache()
    return Peak(case.subject, case.method, batch, size, "ok")


def child_peak(name: str, batch: int) -> int:
    """`resident_peak` in a separate process."""
    # The server imports everything once and forks a clean process for each measurement.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(resident_peak, name, batch).result()


def resident_peak(name: str, batch: int) -> int:
    """Bytes by which this process's peak resident memory grows in one run of a CPU case."""
    torch.set_num_threads(1)
    _return_freed_memory()
    device = torch.device("cpu")
    case = next(case for case in cases(device) if case.name == name)
    # The first call loads libraries.
    case.run(WARM_UP_BATCH, device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # If the kernel refuses to reset the peak, the increase over the peak so far counts.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_so_far()
    case.run(batch, device)
    return _peak_so_far() - before


def _return_freed_memory() -> None:
    # By default glibc raises this threshold over time, and free gaps between tensors of a few MiB
    # then add up to several times the live memory.
    if not ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_PAGES_FROM):
        raise RuntimeError("the C library refused a fixed M_MMAP_THRESHOLD")


def _peak_so_far() -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
