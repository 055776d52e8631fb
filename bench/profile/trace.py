"""Reads a Chrome trace of torch.profiler: ranges, operators, kernels, communication, idle time."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.core.trace_ranges import PREFIX

STEP = PREFIX + "step"
DEVICE_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
HOST_CATEGORIES = frozenset({"cpu_op", "cuda_runtime", "cuda_driver"})
COMMUNICATION = ("nccl", "gloo:")


@dataclass(frozen=True)
class TraceEvent:
    """A span on one thread or stream; times in microseconds."""

    name: str
    category: str
    lane: tuple[Any, Any]
    start: float
    length: float

    @property
    def end(self) -> float:
        """End in microseconds."""
        return self.start + self.length


@dataclass(frozen=True)
class SpanTotal:
    """All spans of one name: their number, time with and without what is nested in them (us)."""

    name: str
    calls: int
    total: float
    own: float


@dataclass(frozen=True)
class AllocatorTrace:
    """The allocator after each change: microseconds, bytes; `device` is `cpu` or `cuda`."""

    device: str
    at: tuple[float, ...]
    allocated: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """The events inside the marked steps; all events if there are no marks."""

    events: tuple[TraceEvent, ...]
    memory: tuple[AllocatorTrace, ...]
    windows: tuple[tuple[float, float], ...]
    lane: tuple[Any, Any]

    @property
    def length(self) -> float:
        """Microseconds of all steps."""
        return sum(end - start for start, end in self.windows)

    @property
    def on_gpu(self) -> bool:
        """Whether anything ran on a GPU."""
        return any(event.category in DEVICE_CATEGORIES for event in self.events)

    def ranges(self) -> list[SpanTotal]:
        """The named ranges of a step on the thread that runs it, longest first."""
        marks = [e for e in self._host("user_annotation") if e.name.startswith(PREFIX)]
        costs = _costs(marks)
        return [
            SpanTotal(cost.name.removeprefix(PREFIX), cost.calls, cost.total, cost.own)
            for cost in costs
            if cost.name != STEP
        ]

    def operators(self) -> list[SpanTotal]:
        """Host operators by their own time."""
        return _costs(self._host("cpu_op"))

    def kernels(self) -> list[SpanTotal]:
        """Kernels, copies and fills of the GPU by their time."""
        return _costs([e for e in self.events if e.category in DEVICE_CATEGORIES], in_stack=False)

    def functions(self) -> list[SpanTotal]:
        """This project's Python functions by the time of the operators directly below them.

        Empty unless the trace was recorded with stacks.
        """
        spans = self._host("python_function") + self._host("cpu_op")
        spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for event, around in nested(spans):
            if event.category == "cpu_op" and not any(e.category == "cpu_op" for e in around):
                owner = next((e for e in reversed(around) if _is_ours(e.name)), None)
                if owner is not None:
                    spent[owner.name][0] += 1
                    spent[owner.name][1] += event.length
        found = [SpanTotal(name, int(n), time, time) for name, (n, time) in spent.items()]
        return sorted(found, key=lambda cost: -cost.own)

    def communication(self) -> float:
        """Microseconds during which a collective ran on any thread or stream."""
        return covered(e for e in self.events if e.name.startswith(COMMUNICATION))

    def busy(self) -> float:
        """Microseconds of work on the GPU, or on a CPU of operators in this thread."""
        if self.on_gpu:
            return covered(e for e in self.events if e.category in DEVICE_CATEGORIES)
        return covered(self._host("cpu_op"))

    def gaps(self, most: int = 5) -> list[tuple[float, str, str]]:
        """The longest times without work: (us, the range, the operator or kernel before it)."""
        on_gpu = self.on_gpu
        working = sorted(
            (
                e
                for e in self.events
                if (e.category in DEVICE_CATEGORIES if on_gpu else e.category in HOST_CATEGORIES)
                and (on_gpu or e.lane == self.lane)
            ),
            key=lambda e: e.start,
        )
        found = []
        for start, end in self.windows:
            reached, before = start, "the start of the step"
            for event in working:
                if not start <= event.start < end:
                    continue
                if event.start > reached:
                    found.append((event.start - reached, reached, before))
                if event.end > reached:
                    reached, before = event.end, event.name
            found.append((end - reached, reached, before))
        longest = sorted(found, reverse=True)[:most]
        return [(length, self._range_at(at), before) for length, at, before in longest]

    def _range_at(self, moment: float) -> str:
        around = [
            e
            for e in self._host("user_annotation")
            if e.name.startswith(PREFIX) and e.name != STEP and e.start <= moment < e.end
        ]
        return min(around, key=lambda e: e.length).name.removeprefix(PREFIX) if around else "-"

    def _host(self, category: str) -> list[TraceEvent]:
        return [e for e in self.events if e.category == category and e.lane == self.lane]


def read_trace(path: Path) -> Trace:
    """Read `.json` or `.json.gz`; raises ValueError for a file that is not a trace."""
    if not path.is_file():
        raise ValueError(f"no trace {path}: `svilm profile` and training.profile.steps write one")
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        entries = json.loads(text)["traceEvents"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        entries = None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a Chrome trace of torch.profiler")
    return trace_of(entries)


def trace_of(entries: Iterable[dict[str, Any]]) -> Trace:
    """Build the trace from Chrome's list of events."""
    events, changes = [], defaultdict(list)
    for entry in entries:
        if entry.get("ph") == "X" and "dur" in entry:
            events.append(
                TraceEvent(
                    str(entry["name"]),
                    str(entry.get("cat", "")),
                    (entry.get("pid"), entry.get("tid")),
                    float(entry["ts"]),
                    float(entry["dur"]),
                )
            )
        elif entry.get("name") == "[memory]":
            args = entry["args"]
            device = "cpu" if args.get("Device Type", 0) == 0 else "cuda"
            changes[device].append((float(entry["ts"]), float(args["Total Allocated"])))
    if not events:
        raise ValueError("the trace is empty: nothing ran while it was recorded")
    steps = [e for e in events if e.name == STEP and e.category == "user_annotation"]
    if steps:
        windows = tuple((e.start, e.end) for e in steps)
        lane = steps[0].lane
    else:
        spans = [e for e in events if e.category in HOST_CATEGORIES | DEVICE_CATEGORIES] or events
        windows = ((min(e.start for e in spans), max(e.end for e in spans)),)
        lane = max(spans, key=lambda e: (e.category == "cpu_op", e.length)).lane
    first = windows[0][0]
    inside = tuple(e for e in events if any(a <= e.start < b for a, b in windows))
    memory = tuple(
        AllocatorTrace(device, *zip(*sorted((at - first, size) for at, size in points)))  # type: ignore[arg-type]
        for device, points in sorted(changes.items())
    )
    return Trace(inside, memory, windows, lane)


def nested(
    events: Iterable[TraceEvent],
) -> Iterator[tuple[TraceEvent, tuple[TraceEvent, ...]]]:
    """Each event in the order of starts, with the events around it, outermost first."""
    stack: list[TraceEvent] = []
    for event in sorted(events, key=lambda e: (e.start, -e.length)):
        while stack and stack[-1].end <= event.start:
            stack.pop()
        yield event, tuple(stack)
        stack.append(event)


def covered(events: Iterable[TraceEvent]) -> float:
    """Microseconds covered by at least one of the spans."""
    total, reached = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(event.start, reached))
        reached = max(reached, event.end)
    return total


def _is_ours(name: str) -> bool:
    file = name.split("(")[0]
    ours = ("svilm_fast/", "kernels/", "train/", "bench/")
    # The helper that names ranges encloses everything, so it explains nothing.
    foreign = (
        "site-packages" in file
        or "/torch/" in file
        or file.endswith("svilm_fast/core/trace_ranges.py")
    )
    return not foreign and file.endswith(".py") and any(part in file for part in ours)


def _costs(events: Sequence[TraceEvent], *, in_stack: bool = True) -> list[SpanTotal]:
    """Totals by name; `in_stack`: the events of one thread, whose own time excludes nested ones."""
    calls: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    own: dict[str, float] = defaultdict(float)
    for event, around in nested(events):
        calls[event.name] += 1
        total[event.name] += event.length
        own[event.name] += event.length
        if in_stack and around:
            own[around[-1].name] -= event.length
            # A span inside one of the same name is already part of its total.
            if any(e.name == event.name for e in around):
                total[event.name] -= event.length
    found = [SpanTotal(name, calls[name], total[name], own[name]) for name in calls]
    return sorted(found, key=lambda cost: -cost.own)
