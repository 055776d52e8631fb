"""One rank of a measurement: times collectives, and counts those of the losses and of ZeRO."""

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
from svilm_fast.train.ranks.process_group import Ranks, leave_ranks, start_ranks

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
    """Time of each call on the slowest rank, as the lower quintile of the repeats.

    The calls take turns, so that a change of the machine's load meets all of them alike; low,
    because other work, and more ranks than cores, only ever add to a call.
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
    """The calls one after another, as one."""
    return lambda: [call() for call in calls]


def measure(
    sizes: list[int], steps: list[list[tuple[str, int]]], ranks: Ranks, repeats: int
) -> tuple[list[dict[str, Any]], list[float]]:
    """Seconds of a call of every kind and size, and of every step's collectives in their order.

    A sample of the first is a chain of CHAIN calls, as a step is one: the start behind a barrier
    and the loss of a core in between weigh on both alike.
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


def engine_step(config: RunConfig, ranks: Ranks) -> CountedCollectives:
    """The second step of a real engine on random clips, counted: losses and ZeRO together."""
    from svilm_fast.bench.synthetic import random_batch
    from svilm_fast.objectives.svilm import build_model
    from svilm_fast.tasks.pretrain.inputs import model_inputs
    from svilm_fast.train.engine.engine import start_engine

    torch.manual_seed(0)
    engine = start_engine(build_model(config), config, ranks)
    local = config.training.global_batch // ranks.world_size
    inputs = model_inputs(random_batch(config, local, seed=ranks.rank), config, 0, ranks)
    engine.step(inputs, 1e-3)
    with (counted := CountedCollectives()):
        engine.step(inputs, 1e-3)
    engine.close()
    return counted


def main(arguments: list[str]) -> None:
    """Arguments: result file, then a JSON task."""
    result, task = Path(arguments[0]), json.loads(arguments[1])
    ranks = start_ranks(DistributedConfig(device=task.get("device", "cpu")))
    found: dict[str, Any] = {"world_size": ranks.world_size, "device": ranks.device.type}
    found["losses"], issued = [], []
    for overrides in task.get("losses", []):
        counted = loss_step(load_config("demo", overrides), ranks)
        found["losses"].append(
            {"bytes": counted.bytes, "calls": counted.calls, "overrides": overrides}
        )
        issued.append(counted.issued)
    if task.get("sizes"):
        found["timed"], seconds = measure(task["sizes"], issued, ranks, task["repeats"])
        for entry, taken in zip(found["losses"], seconds, strict=True):
            entry["seconds"] = taken
    found["engines"] = []
    for overrides in task.get("engines", []):
        counted = engine_step(load_config("demo", overrides), ranks)
        found["engines"].append({"bytes": counted.bytes, "calls": counted.calls})
    ranks.barrier()
    if ranks.is_first:
        result.write_text(json.dumps(found))
    leave_ranks()


if __name__ == "__main__":
    main(sys.argv[1:])
