"""The peak memory of a call above the memory in use before it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler's own messages: traces, and blocks from before the recording that are freed.
_NOISE = (b"USDT:", b"CPUAllocator.cpp")


def memory_source(device: torch.device) -> str:
    """The source of `peak_extra_bytes` on a device, in words."""
    if device.type == "cuda":
        return "peak of the CUDA caching allocator"
    return "peak of PyTorch's CPU allocations, from the profiler"


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Run `call` once; return the peak of live tensor bytes less those before it.

    Memory that PyTorch does not allocate (libraries, Python objects) is not included. On one device
    and version the figure repeats exactly.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with (
        without_profiler_noise(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        call()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most


@contextmanager
def without_profiler_noise() -> Iterator[None]:
    """Remove the profiler's own messages from stderr; keep everything else."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            written.seek(0)
            lines = written.read().splitlines(keepends=True)
            kept = b"".join(line for line in lines if not any(text in line for text in _NOISE))
            if kept:
                os.write(terminal, kept)
            os.close(terminal)
