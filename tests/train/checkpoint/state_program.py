"""One rank of test_state_over_ranks.py: takes over portable states, trains, saves, goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from svilm_fast.train.checkpoint.portable import (
    load_average,
    load_moments,
    load_weights,
    save_portable,
)
from svilm_fast.train.checkpoint.store import TrainerState, load_checkpoint, save_checkpoint
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.ranks.process_group import Ranks, leave_ranks, start_ranks
from tests.train.conftest import TinyModel, tiny_batch, tiny_config

ROWS, WIDTH, RATE = 12, 7, 0.02
SETTINGS = (
    f"training.global_batch={ROWS}",
    "deepspeed.persistence_elements=0",
    "training.gradient_clipping=0",
    "ema.decay=0.5",
)


def engine_of(ranks: Ranks, *overrides: str, source: Path | None = None) -> Engine:
    torch.manual_seed(0)
    model = TinyModel(WIDTH, 0.0)
    model.body[0].bias.requires_grad_(False)
    if source is not None:
        load_weights(model, source)
    engine = start_engine(model, tiny_config(*SETTINGS, *overrides), ranks)
    if source is not None:
        load_moments(engine, source)
        load_average(engine, source)
    return engine


def run(engine: Engine, first: int, last: int) -> None:
    bf16 = engine.config.training.precision == "bf16"
    share = ROWS // engine.ranks.world_size
    own = slice(engine.ranks.rank * share, (engine.ranks.rank + 1) * share)
    for step in range(first, last):
        batch = {name: value[own] for name, value in tiny_batch(step, ROWS).items()}
        if bf16:
            batch = {name: value.bfloat16() for name, value in batch.items()}
        assert engine.step(batch, RATE).applied
        engine.ema.update(step + 1)


def main(folder: Path) -> None:
    ranks = start_ranks(tiny_config().distributed)
    for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16")):
        settings = (f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
        place = folder / f"{precision}_{stage}"
        if precision == "fp32":
            taken = engine_of(ranks, *settings, source=folder / "one")
            save_portable(taken, place / "taken", 3, {})
            run(taken, 3, 5)
            save_portable(taken, place / "taken_further", 5, {})
            taken.close()
        engine = engine_of(ranks, *settings)
        run(engine, 0, 3)
        save_checkpoint(engine, place / "checkpoints", TrainerState(3, {"rank": ranks.rank}), 1)
        save_portable(engine, place / "gathered", 3, {"rank": 0})
        run(engine, 3, 5)
        save_portable(engine, place / "straight", 5, {})
        load_checkpoint(engine, place / "checkpoints")
        run(engine, 3, 5)
        save_portable(engine, place / "resumed", 5, {})
        engine.close()
    ranks.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
