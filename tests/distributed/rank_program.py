"""One rank of the comparisons with a single process; started with a launcher's variables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.objectives.features import Features
from svilm_fast.objectives.total import StepOutput
from svilm_fast.train.engine.sharded_state import masters
from svilm_fast.train.ranks.process_group import Ranks, leave_ranks, start_ranks
from tests.distributed.conftest import (
    rows_of_rank,
    small_config,
    small_engine,
    small_inputs,
    small_model,
    train_steps,
    weights_of,
)


def in_float64(ranks: Ranks, overrides: list[str], micro_batch: int) -> dict[str, Any]:
    """Loss and averaged gradients of the cache without an engine."""
    model = small_model(small_config(*overrides)).double()
    step = CachedStep(
        model, rows_of_rank(small_inputs(), ranks.rank, ranks.world_size), micro_batch
    )
    step.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = parameter.grad / ranks.world_size
        dist.all_reduce(gradients[name])
    return {"losses": step.output.loss.detach(), "gradients": gradients}


def wrong_use(ranks: Ranks, overrides: list[str]) -> dict[str, Any]:
    """A loss that is NaN on the last rank alone, then a rank with a pair too few."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN then
    engine = small_engine(ranks, [*overrides, "deepspeed.zero_stage=3"])
    torch.use_deterministic_algorithms(False)
    finite = all(bool(master.isfinite().all()) for master in masters(engine))
    padded = sum(parameter.padding_size() for parameter in engine.model.parameters())
    before = weights_of(engine)
    inputs = rows_of_rank(small_inputs(), ranks.rank, ranks.world_size)
    objective = engine.model.objective
    if ranks.rank == ranks.world_size - 1:

        def poisoned(features: Features) -> StepOutput:
            output = objective(features)
            return output._replace(loss=output.loss * float("nan"))

        engine.model.objective = poisoned
    applied = engine.step(inputs, 0.1).applied
    engine.model.objective = objective
    after = weights_of(engine)
    unchanged = all(torch.equal(after[name], value) for name, value in before.items())
    try:
        engine.step(inputs.rows(slice(0, 6 - ranks.rank)), 0.1)
        unequal = "went through"
    except ValueError as error:
        unequal = str(error)
    engine.close()
    return {
        "poisoned": [applied, unchanged],
        "unequal": unequal,
        "padding": {"elements": padded, "finite": finite},
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks(small_config().distributed)
    told = {}
    for job in torch.load(folder / "jobs.pt"):
        if job["name"] == "wrong":
            told["wrong"] = wrong_use(ranks, job["overrides"])
            continue
        run = in_float64 if job["float64"] else train_steps
        told[job["name"]] = run(ranks, job["overrides"], job["number"])
    torch.save(told, folder / f"rank_{ranks.rank}.pt")
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
