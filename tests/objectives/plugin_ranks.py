"""One rank of test_plugins.py: trains with both objectives of plugins.py under DeepSpeed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks
from tests.distributed.conftest import small_config, train_steps
from tests.distributed.rank_program import in_float64
from tests.objectives import plugins  # noqa: F401  # registers them


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(small_config().distributed)
    told = {}
    for name, (overrides, number) in torch.load(folder / "jobs.pt").items():
        run = in_float64 if name == "float64" else train_steps
        told[name] = run(ranks, overrides, number)
    torch.save(told, folder / f"rank_{ranks.rank}.pt")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
