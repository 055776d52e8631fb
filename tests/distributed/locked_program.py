"""One rank that trains with locked towers; started by test_locked_ranks.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from conftest import rows_of_rank, small_config, small_engine, small_inputs, weights_of

from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(small_config().distributed)
    told = []
    for overrides in torch.load(folder / "jobs.pt"):
        engine = small_engine(ranks, overrides)
        for step in range(2):
            inputs = rows_of_rank(small_inputs(step), ranks.rank, ranks.world_size)
            assert engine.step(inputs, engine.config.optimizer.lr).applied
        told.append(weights_of(engine))
        engine.close()
    torch.save(told, folder / f"rank_{ranks.rank}.pt")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
