"""One rank of test_plugins.py: trains with both objectives of plugins.py under DeepSpeed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from svilm_fast.train.ranks.process_group import Ranks, leave_ranks, start_ranks
from tests.distributed.conftest import (
    rows_of_rank,
    small_config,
    small_engine,
    small_inputs,
    train_steps,
    weights_of,
)
from tests.distributed.rank_program import in_float64
from tests.objectives import plugins  # noqa: F401  # registers them


def weights_after(ranks: Ranks, overrides: list[str], steps: int) -> dict[str, Any]:
    """Losses of this rank and the weights, where not every parameter is trained."""
    engine = small_engine(ranks, overrides)
    losses = [
        engine.step(rows_of_rank(small_inputs(step), ranks.rank, ranks.world_size), 0.01).loss
        for step in range(steps)
    ]
    told = {"losses": torch.stack(losses), "weights": weights_of(engine)}
    engine.close()
    return told


RUNS = {"float64": in_float64, "engine": train_steps, "weights": weights_after}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(small_config().distributed)
    told = {}
    for name, (run, overrides, number) in torch.load(folder / "jobs.pt").items():
        told[name] = RUNS[run](ranks, overrides, number)
    torch.save(told, folder / f"rank_{ranks.rank}.pt")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
