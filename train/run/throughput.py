"""Clips per second, data-wait share, model FLOPs and utilisation, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass
class Meter:
    """Times the steps between two records.

    flops_per_step: forward and backward of the global batch; None if unknown. peak: FLOP/s of one
    device.
    """

    global_batch: int
    world_size: int
    flops_per_step: float | None
    peak: float | None
    steps: int = 0
    data_seconds: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add_step(self, data_seconds: float) -> None:
        """Count one step that waited `data_seconds` for its batch."""
        self.steps += 1
        self.data_seconds += data_seconds

    def pause(self, seconds: float) -> None:
        """Exclude time of evaluations and checkpoints from the figures."""
        self.started += seconds

    def read(self) -> dict[str, float]:
        """Return the figures since the last call, then reset; empty without a step."""
        now = self.clock()
        seconds, steps = now - self.started, self.steps
        waited = self.data_seconds
        self.started, self.steps, self.data_seconds = now, 0, 0.0
        if steps == 0 or seconds <= 0:
            return {}
        figures = {
            "clips_per_second": steps * self.global_batch / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": min(1.0, waited / seconds),
        }
        if self.flops_per_step is None:
            return figures
        figures["model_tflops_per_second"] = steps * self.flops_per_step / seconds / 1e12
        if self.peak is not None:
            whole = self.peak * self.world_size
            figures["utilisation"] = steps * self.flops_per_step / seconds / whole
        return figures
