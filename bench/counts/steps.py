"""Small whole training steps: what a rank does once per batch, without data on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from svilm_fast.bench.synthetic import random_batch
from svilm_fast.objectives.svilm import build_model
from svilm_fast.tasks.pretrain.inputs import model_inputs
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.environment import seed_everything
from svilm_fast.train.ranks.process_group import Ranks

LOCAL_BATCH = 4
SETTINGS = {
    "ZeRO 1": ("deepspeed.zero_stage=1",),
    "ZeRO 1, gradient cache": ("deepspeed.zero_stage=1", "training.micro_batch=2"),
    "ZeRO 3": ("deepspeed.zero_stage=3", "deepspeed.persistence_elements=0"),
}


def small_config(*overrides: str, world_size: int = 1) -> RunConfig:
    """The demo's recipe on a model of some ten thousand parameters."""
    small = [
        *SMALL_MODEL,
        f"training.global_batch={LOCAL_BATCH * world_size}",
        "training.steps=8",
        "distributed.device=cpu",
    ]
    return load_config("demo", [*small, *overrides])


def steps(ranks: Ranks) -> Iterator[tuple[str, Callable[[], object], Callable[[], None]]]:
    """(name, one step, what frees it) of each setting."""
    for name, overrides in SETTINGS.items():
        config = small_config(*overrides, world_size=ranks.world_size)
        seed_everything(0, deterministic=False, threads=1)
        engine = start_engine(build_model(config), config, ranks)
        batch = random_batch(config, LOCAL_BATCH, seed=ranks.rank)

        def step(config=config, engine=engine, batch=batch) -> object:
            return engine.step(model_inputs(batch, config, 0, ranks), 1e-3)

        yield name, step, engine.close
