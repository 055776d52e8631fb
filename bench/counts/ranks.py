"""Counts the collectives and host waits of ops and training steps on two gloo ranks.

`python -m svilm_fast.bench.counts.ranks FOLDER` runs one of the ranks.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from svilm_fast.bench.counts.peak import both_directions
from svilm_fast.bench.counts.watch import CallCounter
from svilm_fast.bench.rank_processes import run_ranks
from svilm_fast.bench.synthetic import random_batch
from svilm_fast.kernels.registry import Op, ops
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.environment import seed_everything
from svilm_fast.train.ranks.process_group import Ranks, joined_ranks

WORLD_SIZE = 2
TIMEOUT_S = 300
LOCAL_BATCH = 4
# The first step of ZeRO 3 records the order of the modules; the second step uses it.
STEPS_BEFORE = 2
SETTINGS = {
    "ZeRO 1": ("deepspeed.zero_stage=1",),
    "ZeRO 1, gradient cache": ("deepspeed.zero_stage=1", "training.micro_batch=2"),
    "ZeRO 3": ("deepspeed.zero_stage=3", "deepspeed.persistence_elements=0"),
}


def count_on_ranks() -> dict[str, dict[str, Any]]:
    """Return case -> {"collectives": kind -> [calls, bytes], "waits": name -> calls} of rank 0.

    Starts two processes. Raises RuntimeError if one of them fails, with the end of its output, or
    if the ranks issued different collectives.
    """
    first, second = run_ranks(__name__, WORLD_SIZE, timeout_s=TIMEOUT_S)
    for case in first:
        if first[case]["collectives"] != second[case]["collectives"]:
            raise RuntimeError(
                f"{case}: rank 0 issued {first[case]['collectives']}, "
                f"rank 1 {second[case]['collectives']}"
            )
    return first


def distributed_op(op: Op) -> Callable[[], object]:
    """Forward and backward of the distributed op on this rank's own small batch."""
    distributed = op.distributed
    if distributed is None:
        raise ValueError(f"{op.name} has no distributed form")
    accepted = inspect.signature(distributed).parameters

    def provider(**inputs: Any) -> object:
        return distributed(**{name: value for name, value in inputs.items() if name in accepted})

    return both_directions(op, provider, op.sizes.small)


def _ops_cases() -> Iterator[tuple[str, Callable[[], object], int]]:
    for op in ops().values():
        if op.distributed is not None:
            yield f"op {op.name}, both directions", distributed_op(op), 0


def _steps(ranks: Ranks) -> Iterator[tuple[str, Callable[[], object], int]]:
    """One training step of each setting: the demo's recipe on about ten thousand parameters."""
    for name, overrides in SETTINGS.items():
        batch = f"training.global_batch={LOCAL_BATCH * ranks.world_size}"
        small = [*SMALL_MODEL, batch, "training.steps=8", "distributed.device=cpu"]
        config = load_config("demo", [*small, *overrides])
        task = task_of(config)
        seed_everything(0, deterministic=False, threads=1)
        engine = start_engine(task.model(), config, ranks)
        clips = random_batch(config, LOCAL_BATCH, seed=ranks.rank)

        def step(task=task, engine=engine, clips=clips) -> object:
            return engine.step(task.inputs(clips, 0, ranks), 1e-3)

        yield f"step {name}", step, STEPS_BEFORE
        engine.close()


def main(folder: Path) -> None:
    """Count every case as one rank of the group that the environment describes."""
    found = {}
    with joined_ranks(DistributedConfig(device="cpu")) as ranks:
        for cases in (_ops_cases(), _steps(ranks)):
            for name, call, before in cases:
                for _ in range(before):
                    call()
                with CallCounter() as watch:
                    call()
                found[name] = {"collectives": watch.collectives, "waits": dict(watch.waits)}
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
