"""One side of a comparison: prepares, verifies and times benchmarks on request.

    PYTHONPATH=<checkout> python -m svilm_fast.bench.ab.worker --device cpu

Requests and replies are lines of JSON on stdin and stdout; all other output goes to stderr. A reply
holds either `ok`, or `error` with `kind` and `message`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

import svilm_fast
from svilm_fast.bench.ab.process import PROTOCOL, SUITES_MODULE
from svilm_fast.bench.environment import environment
from svilm_fast.bench.errors import NoSuchBenchmark, Skipped, WrongResult
from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.suites.benchmark import Benchmark, Prepared
from svilm_fast.core.messages import single_line

ACTIONS = ("hello", "pin", "prepare", "verify", "time", "peak", "close")
RENEW = "renew"
SCHEDULER = Path("/proc/thread-self/schedstat")
# The most objects and tensors that a new child allocates to shift its later allocations.
PADDING_OBJECTS, PADDING_TENSORS = 300, 20


class Side:
    """The benchmarks of this checkout, at most one of them prepared."""

    def __init__(
        self, module: str, suites: list[str] | None, only: str | None, device: torch.device
    ) -> None:
        self.device = device
        found = importlib.import_module(module).benchmarks(suites, device, only)
        self.benchmarks: dict[str, Benchmark] = {
            id: one for id, one in found.items() if not one.background
        }
        self.left_out = [id for id, one in found.items() if one.background]
        self.prepared: Prepared | None = None
        self.host_only = False
        self.padding: list[object] = []

    def hello(self) -> dict[str, Any]:
        """Describe this side: protocol, imported checkout, machine and ids."""
        return {
            "protocol": PROTOCOL,
            "library": str(Path(svilm_fast.__file__).resolve().parent),
            "environment": environment(self.device),
            "ids": list(self.benchmarks),
            "left_out": self.left_out,
        }

    def pin(self, cores: list[int]) -> None:
        """Run on these cores from now on; imports may use all of them."""
        os.sched_setaffinity(0, cores)

    def prepare(self, id: str, warm: int = 0) -> None:
        """Build the benchmark in place of the one before and call it `warm` times."""
        self.close()
        self.host_only = self.benchmarks[id].on_host
        self.prepared = self.benchmarks[id].prepare(self.device)
        for _ in range(warm):
            self.prepared.call()

    def verify(self) -> dict[str, Any]:
        """Verify the prepared call on its own tensors; also tells the shape that it runs."""
        prepared = self._ready()
        return {"error": prepared.verify(), "shape": prepared.facts.get("shape")}

    def time(self, calls: int) -> dict[str, int]:
        """Nanoseconds of `calls` calls.

        `waited` is the part of it in which the thread was ready to run but had no core. GPU work is
        timed with CUDA events, with a warm L2 cache.
        """
        call = self._ready().call
        if self.device.type == "cuda" and not self.host_only:
            return {"ns": self._cuda_ns(calls), "waited": 0}
        start, before = _moment()
        for _ in range(calls):
            call()
        end, after = _moment()
        return {"ns": end - start, "waited": after - before}

    def peak(self) -> dict[str, int | None]:
        """Extra bytes that one call holds at its peak; None for host code, which has no tensors."""
        if self.host_only:
            return {"bytes": None}
        return {"bytes": peak_extra_bytes(self._ready().call, self.device)}

    def close(self) -> None:
        """Free the prepared benchmark."""
        if self.prepared is not None:
            prepared, self.prepared = self.prepared, None
            prepared.close()
        gc.collect()

    def move_memory(self) -> None:
        """Allocate and keep memory of random sizes, which shifts the next allocations."""
        draw = random.Random()
        objects, tensors = draw.randrange(PADDING_OBJECTS), draw.randrange(PADDING_TENSORS)
        self.padding = [bytearray(draw.randrange(4096)) for _ in range(objects)]
        self.padding += [torch.empty(draw.randrange(200_000)) for _ in range(tensors)]

    def _ready(self) -> Prepared:
        if self.prepared is None:
            raise RuntimeError("no benchmark is prepared")
        return self.prepared

    def _cuda_ns(self, calls: int) -> int:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call = self._ready().call
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return round(start.elapsed_time(end) * 1e6)


def _moment() -> tuple[int, int]:
    """The clock, and this thread's total time of waiting for a core until then, in nanoseconds.

    Linux counts the latter. The two counts around the clock differ if the core was lost between
    them; then all are read again.
    """
    while True:
        before = _waited_ns()
        now = time.perf_counter_ns()
        if _waited_ns() == before:
            return now, before


def _waited_ns() -> int:
    return int(SCHEDULER.read_text().split()[1]) if _TELLS_WAITING else 0


_TELLS_WAITING = SCHEDULER.is_file()


def answer(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request; any failure becomes an `error` reply."""
    name = request.pop("do", None)
    try:
        if name not in ACTIONS:
            raise ValueError(f"unknown request {name!r}; this worker knows {', '.join(ACTIONS)}")
        return {"ok": getattr(side, name)(**request)}
    except WrongResult as wrong:
        return _error("wrong_result", wrong)
    except Skipped as reason:
        return _error("skipped", reason)
    except Exception as failure:
        return _error("failed", failure)


def _error(kind: str, failure: Exception) -> dict[str, Any]:
    message = f"{type(failure).__name__}: {single_line(str(failure), None)}"
    return {"error": {"kind": kind, "message": message}}


def serve(side: Side, requests: TextIO, replies: TextIO) -> None:
    """Answer requests until stdin ends.

    `renew` hands the pipes to a new child of this process with another memory layout; the next
    `renew` ends that child, and the same parent forks another one.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    child = False
    # Not `for line in requests`: that reads ahead, and parent and child share the pipe.
    while line := requests.readline():
        request = json.loads(line)
        if request["do"] != RENEW:
            print(json.dumps(answer(side, request)), file=replies, flush=True)
            continue
        if child:
            side.close()
            os._exit(0)
        child = _renew(side)
        print(json.dumps({"ok": None}), file=replies, flush=True)
    side.close()
    if child:
        os._exit(0)


def _renew(side: Side) -> bool:
    """Fork; returns True in each child, while the parent waits here for the child's end."""
    while True:
        process = os.fork()
        if process == 0:
            side.move_memory()
            return True
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code != 0:
            _end_like(code)


def _end_like(code: int) -> NoReturn:
    """End with the child's signal or status, so that the command sees what happened to it."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Serve requests: replies go to the real stdout, all other output to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--module", default=SUITES_MODULE)
    parser.add_argument("--suite", action="append")
    parser.add_argument("--only")
    options = parser.parse_args(arguments)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    try:
        side = Side(options.module, options.suite, options.only, device)
        facts = side.hello()
    except Exception as failure:
        kind = "usage" if isinstance(failure, NoSuchBenchmark) else "start"
        print(json.dumps(_error(kind, failure)), file=replies, flush=True)
        sys.exit(1)
    print(json.dumps({"ok": facts}), file=replies, flush=True)
    serve(side, sys.stdin, replies)


if __name__ == "__main__":
    main()
