"""One rank that counts the collectives of a whole training step, losses and ZeRO together.

Arguments: a folder, and a JSON list of overrides of the demo's recipe for each step. Rank 0 writes
the bytes of each kind of collective into `0.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from svilm_fast.bench.collectives import CountedCollectives
from svilm_fast.bench.synthetic import random_batch
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.ranks.process_group import Ranks, joined_ranks


def second_step(overrides: list[str], ranks: Ranks) -> dict[str, int]:
    """Bytes of each kind of collective in the second step on random clips."""
    config = load_config("demo", overrides)
    task = task_of(config)
    torch.manual_seed(0)
    engine = start_engine(task.model(), config, ranks)
    local = config.training.global_batch // ranks.world_size
    inputs = task.inputs(random_batch(config, local, seed=ranks.rank), 0, ranks)
    engine.step(inputs, 1e-3)
    with (counted := CountedCollectives()):
        engine.step(inputs, 1e-3)
    engine.close()
    return counted.bytes


def main(folder: Path, engines: list[list[str]]) -> None:
    with joined_ranks(DistributedConfig(device="cpu")) as ranks:
        found = [second_step(overrides, ranks) for overrides in engines]
    if ranks.is_first:
        (folder / "0.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
