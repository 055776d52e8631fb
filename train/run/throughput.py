"""Clips per second, data-wait share, model FLOPs and utilisation, peak memory."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # A child starts with the ru_maxrss of its parent, so it can exceed the child's own peak.
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_seconds() -> float:
    """Return the processor time of this process and of its children, those that ended included."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user and system, own and of children that ended
    return total


@dataclass
class Meter:
    """Times the steps between two records.

    flops_per_step: forward and backward of the global batch; None if unknown. peak: FLOP/s of one
    device. processor: processor time of this rank, for runs on a CPU, where other programs share
    the cores; None: not measured.
    """

    global_batch: int
    world_size: int
    flops_per_step: float | None
    peak: float | None
    steps: int = 0
    data_seconds: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    processor: Callable[[], float] | None = None
    started: float = field(init=False)
    used: float = field(init=False)

    def __post_init__(self) -> None:
        self.started, self.used = self.clock(), self._processor()

    def _processor(self) -> float:
        return 0.0 if self.processor is None else self.processor()

    def add_step(self, data_seconds: float) -> None:
        """Count one step that waited `data_seconds` for its batch."""
        self.steps += 1
        self.data_seconds += data_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude time of evaluations and checkpoints from the figures."""
        started, used = self.clock(), self._processor()
        yield
        self.started += self.clock() - started
        self.used += self._processor() - used

    def read(self) -> dict[str, float]:
        """Return the figures since the last call, then reset; empty without a step."""
        now, used = self.clock(), self._processor()
        seconds, steps = now - self.started, self.steps
        worked, waited = used - self.used, self.data_seconds
        self.started, self.used, self.steps, self.data_seconds = now, used, 0, 0.0
        if steps == 0 or seconds <= 0:
            return {}
        figures = {
            "clips_per_second": steps * self.global_batch / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": min(1.0, waited / seconds),
        }
        if self.processor is not None:
            figures["processor_seconds_per_step"] = worked / steps
        if self.flops_per_step is None:
            return figures
        figures["model_tflops_per_second"] = steps * self.flops_per_step / seconds / 1e12
        if self.peak is not None:
            whole = self.peak * self.world_size
            figures["utilisation"] = steps * self.flops_per_step / seconds / whole
        return figures
