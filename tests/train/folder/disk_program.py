"""One rank of test_disk_over_ranks.py: rank 1 cannot write a part of its files, then it can."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.train.checkpoint import store as checkpoint
from svilm_fast.train.checkpoint.store import TrainerState, newest_verified, save_checkpoint, tag_of
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks
from tests.train.conftest import TinyModel, tiny_batch, tiny_config


def failing(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def torch_fails(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


# What fails on rank 1 and how, as (object, name, stand-in).
FAULTS = (
    (checkpoint, "save_random_state", failing(28)),  # ENOSPC
    (checkpoint, "write_json", failing(122)),  # EDQUOT
    (checkpoint, "save_random_state", failing(13)),  # EACCES
    (torch, "save", torch_fails),
)


def main(folder: Path) -> None:
    ranks = start_ranks(tiny_config().distributed)
    told: list[list[str]] = []
    for stage in (1, 3):
        torch.manual_seed(0)
        config = tiny_config(f"deepspeed.zero_stage={stage}")
        engine = start_engine(TinyModel(8, 0.0), config, ranks)
        batch = {name: value[4 * ranks.rank :][:4] for name, value in tiny_batch(0).items()}
        engine.step(batch, 0.02)
        place = folder / f"stage_{stage}"
        save_checkpoint(engine, place, TrainerState(1, {}), keep=1)
        for where, name, stand_in in FAULTS:
            kept = getattr(where, name)
            if ranks.rank == 1:
                setattr(where, name, stand_in)
            try:
                save_checkpoint(engine, place, TrainerState(2, {}), keep=1)
                told.append(["saved", ""])
            except UserError as error:
                told.append([type(error).__name__, str(error)])
            setattr(where, name, kept)
            assert not (place / tag_of(2)).exists()
            assert newest_verified(place) == tag_of(1)
        engine.step(batch, 0.02)
        save_checkpoint(engine, place, TrainerState(2, {}), keep=1)
        assert newest_verified(place) == tag_of(2)
        engine.close()
    (folder / f"rank_{ranks.rank}.json").write_text(json.dumps(told))
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
