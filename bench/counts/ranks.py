"""Ops and training steps on two gloo ranks under the watch; `python -m` runs one rank."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from svilm_fast.bench.counts.steps import steps
from svilm_fast.bench.counts.watch import CallCounter
from svilm_fast.bench.environment import ROOT
from svilm_fast.kernels.registry import Op, ops
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.environment import free_port
from svilm_fast.train.ranks.process_group import Ranks, joined_ranks

WORLD_SIZE = 2
TIMEOUT_S = 300
# The first step of ZeRO 3 records the order of modules; the second one uses it.
STEPS_BEFORE = 2


def count_on_ranks() -> dict[str, dict[str, Any]]:
    """Case -> {"collectives": kind -> [calls, bytes], "waits": name -> calls}, of rank 0.

    Starts two processes; raises RuntimeError with what they said where one of them fails, or where
    the ranks did not issue the same collectives.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run_ranks(Path(folder))
        first, second = (
            json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)
        )
    for case in first:
        if first[case]["collectives"] != second[case]["collectives"]:
            raise RuntimeError(
                f"{case}: rank 0 issued {first[case]['collectives']}, "
                f"rank 1 {second[case]['collectives']}"
            )
    return first


def _run_ranks(folder: Path) -> None:
    shared = {"WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared["MASTER_PORT"] = str(free_port())
    started = []
    for rank in range(WORLD_SIZE):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with Path(folder, f"{rank}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "svilm_fast.bench.counts.ranks", str(folder)],
                    cwd=ROOT,
                    env=os.environ | shared | place,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [process.wait(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, code in enumerate(codes):
        if code:
            tail = Path(folder, f"{rank}.log").read_text(errors="replace")[-600:]
            raise RuntimeError(f"rank {rank} of the counts ended with {code}: {tail}")


def distributed_op(op: Op) -> Callable[[], object]:
    """Forward and backward of one op on this rank's own small batch."""
    distributed = op.distributed
    if distributed is None:
        raise ValueError(f"{op.name} has no distributed form")
    accepted = inspect.signature(distributed).parameters
    made = op.make_inputs(op.sizes.small, torch.float32, "cpu", 0)
    inputs = {key: value for key, value in made.items() if key in accepted}
    leaves = [
        value.requires_grad_()
        for value in inputs.values()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    return lambda: torch.autograd.grad(distributed(**inputs), leaves)


def _ops_cases() -> Iterator[tuple[str, Callable[[], object], int]]:
    for op in ops().values():
        if op.distributed is not None:
            yield f"op {op.name}, both directions", distributed_op(op), 0


def _cases(ranks: Ranks) -> Iterator[tuple[str, Callable[[], object], int]]:
    yield from _ops_cases()
    for name, step, close in steps(ranks):
        yield f"step {name}", step, STEPS_BEFORE
        close()


def main(folder: Path) -> None:
    """Count every case as one rank of the group that the environment describes."""
    found = {}
    with joined_ranks(DistributedConfig(device="cpu")) as ranks:
        for name, call, before in _cases(ranks):
            for _ in range(before):
                call()
            with CallCounter() as watch:
                call()
            found[name] = {"collectives": watch.collectives, "waits": dict(watch.waits)}
    rank = os.environ["RANK"]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
