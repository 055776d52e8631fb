"""One rank of a two-rank comparison; started by test_two_ranks.py with a launcher's variables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint.portable import save_portable
from svilm_fast.train.checkpoint.portable_files import check_portable
from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks
from tests.train.conftest import TinyModel, tiny_batch, tiny_config


def half_of(step: int, rank: int) -> dict[str, torch.Tensor]:
    whole = tiny_batch(step)
    return {name: value[4 * rank : 4 * rank + 4] for name, value in whole.items()}


def run(engine: Engine, first: int, last: int) -> list[float]:
    rank = engine.ranks.rank
    return [float(engine.step(half_of(step, rank), 0.02).loss) for step in range(first, last)]


def main(folder: Path) -> None:
    ranks = start_ranks(tiny_config().distributed)
    told: dict[str, object] = {}
    for stage in (0, 1, 2, 3):
        config = tiny_config(
            f"deepspeed.zero_stage={stage}",
            "deepspeed.persistence_elements=0",
            "training.gradient_clipping=0.05",
        )
        torch.manual_seed(0)
        engine = start_engine(TinyModel(8, 0.0), config, ranks)
        run(engine, 0, 2)
        place = folder / f"stage_{stage}"
        save_checkpoint(engine, place, TrainerState(2, {"rank": ranks.rank}), keep=1)
        losses = run(engine, 2, 4)
        save_portable(engine, place / "portable", 4, {})
        state = load_checkpoint(engine, place)
        assert state is not None
        again = run(engine, 2, 4)
        poisoned = half_of(4, ranks.rank)
        if ranks.rank == 1:
            poisoned["features"][0, 0] = float("nan")
        bad = engine.step(poisoned, 0.02)
        stop = engine.step(half_of(5, ranks.rank), 0.02, signal=15 * ranks.rank)
        told[str(stage)] = {
            "data": state.data,
            "resumed_alike": losses == again,
            "bad_applied": bad.applied,
            "stop_signal": stop.stop_signal,
        }
        engine.close()
    told["value_of_first"] = ranks.from_first(lambda: f"made by {ranks.rank}")
    try:
        ranks.from_first(lambda: check_portable(folder / "absent"))
    except CheckpointError as error:
        told["error_of_first"] = str(error)
    (folder / f"rank_{ranks.rank}.json").write_text(json.dumps(told))
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
