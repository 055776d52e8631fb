"""Records calls under torch.profiler and writes trace, tables and picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from svilm_fast.bench.memory import without_profiler_noise
from svilm_fast.bench.profile.picture import write_memory
from svilm_fast.bench.profile.text import describe
from svilm_fast.bench.profile.trace import read_trace
from svilm_fast.core.terminal import print
from svilm_fast.core.trace_ranges import phase


def record(
    call: Callable[[], object], path: Path, *, steps: int, device: torch.device, stacks: bool
) -> Path:
    """Run `call` `steps` times, each marked as a step, and write the trace to `path` (.json.gz).

    An existing file is kept: the name gets a number. Returns the path that was written.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with (
        without_profiler_noise(),
        profile(activities=activities, profile_memory=True, with_stack=stacks) as profiler,
    ):
        plain(call, steps=steps, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = unused(path)
    profiler.export_chrome_trace(str(path))
    return path


def unused(path: Path) -> Path:
    """Return `path`, or where it exists the first free name like `step-2.json.gz`."""
    stem, dot, extension = path.name.partition(".")
    tried, number = path, 1
    while os.path.lexists(tried):
        number += 1
        tried = path.with_name(f"{stem}-{number}{dot}{extension}")
    return tried


def plain(call: Callable[[], object], *, steps: int, device: torch.device) -> None:
    """Run the marked steps without recording, for an external profiler."""
    for _ in range(steps):
        with phase("step"):
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)


def tell(path: Path) -> None:
    """Print the tables of a trace and write the memory over time beside it."""
    trace = read_trace(path)
    print(describe(trace))
    print(f"\nwrote {path} (open it in https://ui.perfetto.dev or chrome://tracing)")
    picture = unused(path.with_name(path.name.split(".")[0] + "_memory.png"))
    if write_memory(trace, picture):
        print(f"wrote {picture}")
