"""One rank of a measurement: times collectives and counts those of the losses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from svilm_fast.bench.collectives import CountedCollectives
from svilm_fast.bench.synthetic import random_features
from svilm_fast.objectives.total import Objectives
from svilm_fast.train.config.deepspeed import local_batch_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import DistributedConfig, RunConfig
from svilm_fast.train.ranks.process_group import Ranks, joined_ranks

KINDS = ("all_gather", "reduce_scatter", "all_reduce")
CHAIN = 8


def collective(kind: str, size: int, ranks: Ranks) -> Callable[[], object]:
    """A call of that kind on a whole tensor of about `size` bytes (rounded to the ranks)."""
    share = max(1, size // 4 // ranks.world_size)
    whole = torch.zeros(share * ranks.world_size, device=ranks.device)
    part = torch.zeros(share, device=ranks.device)
    if kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part)
    if kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole)
    return lambda: dist.all_reduce(whole)


def seconds_of(calls: Sequence[Callable[[], object]], ranks: Ranks, repeats: int) -> list[float]:
    """Time of each call on the slowest rank: the 20 % quantile of the repeats.

    The calls are interleaved, so that a change of the machine's load affects all of them alike.
    A low quantile, because other work, and more ranks than cores, only ever slow a call down.
    """
    samples: list[list[float]] = [[] for _ in calls]
    for number in range(repeats + 2):
        for call, taken in zip(calls, samples, strict=True):
            ranks.barrier()
            _finish(ranks)
            start = time.perf_counter()
            call()
            _finish(ranks)
            if number >= 2:
                taken.append(time.perf_counter() - start)
    return [float(torch.tensor(ranks.agree_max(*taken)).quantile(0.2)) for taken in samples]


def _finish(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def chain(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One call that runs all the calls in order."""
    return lambda: [call() for call in calls]


def measure(
    sizes: list[int], steps: list[list[tuple[str, int]]], ranks: Ranks, repeats: int
) -> tuple[list[dict[str, Any]], list[float]]:
    """Seconds of a call of every kind and size, and of every step's collectives in their order.

    A sample of a single collective is a chain of CHAIN calls, because a step is a chain as well:
    the start behind a barrier and a lost core then weigh on both alike.
    """
    singles = [(kind, size) for kind in KINDS for size in sizes]
    calls = [chain([collective(kind, size, ranks)] * CHAIN) for kind, size in singles]
    calls += [chain([collective(kind, size, ranks) for kind, size in step]) for step in steps]
    seconds = seconds_of(calls, ranks, repeats)
    rows = []
    for (kind, size), taken in zip(singles, seconds):
        held = max(1, size // 4 // ranks.world_size) * ranks.world_size * 4
        rows.append({"kind": kind, "bytes": held, "seconds": taken / CHAIN})
    return rows, seconds[len(singles) :]


def loss_step(config: RunConfig, ranks: Ranks) -> CountedCollectives:
    """Forward and backward of the global objectives on random features, counted."""
    local = local_batch_of(config, ranks.world_size)
    objectives = Objectives(config).to(ranks.device)
    features = random_features(
        config, local, config.objectives.reads("global"), seed=ranks.rank, device=ranks.device
    )
    with (counted := CountedCollectives()):
        objectives(features)[0].backward()
    return counted


def main(folder: Path, task: dict[str, Any]) -> None:
    """Measure what the task names and write `<rank>.json` into the folder.

    task: `losses`, lists of overrides of the demo's recipe; `sizes` in bytes and `repeats` of the
    collectives to time, if any; `device`, cpu by default.
    """
    with joined_ranks(DistributedConfig(device=task.get("device", "cpu"))) as ranks:
        losses, issued = [], []
        for overrides in task["losses"]:
            counted = loss_step(load_config("demo", overrides), ranks)
            entry = {"bytes": counted.bytes, "calls": counted.calls, "overrides": overrides}
            losses.append(entry)
            issued.append(counted.issued)
        found: dict[str, Any] = {"losses": losses}
        if task.get("sizes"):
            found["timed"], seconds = measure(task["sizes"], issued, ranks, task["repeats"])
            for entry, taken in zip(losses, seconds, strict=True):
                entry["seconds"] = taken
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
