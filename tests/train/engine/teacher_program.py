"""One rank of test_teacher.py: trains with a teacher in every ZeRO stage."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks
from tests.distributed.conftest import rows_of_rank, small_config, small_engine
from tests.objectives.test_vidrop import inputs
from tests.train.engine.test_teacher import RUN, STEPS, teacher_of


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(small_config().distributed)
    for stage in range(4):
        engine = small_engine(ranks, [*RUN, "optimizer.name=sgd", f"deepspeed.zero_stage={stage}"])
        for step in range(STEPS):
            engine.step(rows_of_rank(inputs(step), ranks.rank, 2), 0.01)
            engine.update_average(step + 1)
        torch.save(teacher_of(engine), folder / f"teacher_{stage}_{ranks.rank}.pt")
        engine.close()
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
