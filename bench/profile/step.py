"""A training step as the trainer runs it: loader or random clips, engine, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from svilm_fast.bench.synthetic import random_batch
from svilm_fast.core.errors import UserError
from svilm_fast.core.trace_ranges import phase
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.loader import build_loader
from svilm_fast.data.samples import open_split
from svilm_fast.objectives.svilm import build_model
from svilm_fast.tasks.pretrain.inputs import model_inputs
from svilm_fast.tasks.settings import DEFAULT_TASK
from svilm_fast.train.config.deepspeed import local_batch_of
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.engine.engine import start_engine
from svilm_fast.train.environment import seed_everything
from svilm_fast.train.ranks.process_group import Ranks


@contextmanager
def training_step(
    config: RunConfig, ranks: Ranks, *, synthetic: bool
) -> Iterator[Callable[[], object]]:
    """One optimizer step per call, in the ranges of the training loop; frees the engine at the end.

    synthetic: random clips that are made once, so that the step waits for no data.
    """
    if config.task.name != DEFAULT_TASK:
        raise UserError(
            f"the settings name task {config.task.name!r}, and only steps of {DEFAULT_TASK!r} are "
            "profiled; set training.profile.steps to record steps of a run"
        )
    seed_everything(
        config.run.seed, deterministic=config.run.deterministic, threads=config.run.threads
    )
    with _batches(config, ranks, synthetic) as batches:
        engine = start_engine(build_model(config), config, ranks)
        taken = iter(range(1 << 62))

        def step() -> object:
            with phase("data"):
                batch = next(batches)
            with phase("inputs"):
                inputs = model_inputs(batch, config, next(taken), ranks)
            return engine.step(inputs, config.optimizer.lr)

        try:
            yield step
        finally:
            engine.close()


@contextmanager
def _batches(config: RunConfig, ranks: Ranks, synthetic: bool) -> Iterator[Iterator[ClipBatch]]:
    local_batch = local_batch_of(config, ranks.world_size)
    if synthetic:
        batch = random_batch(config, local_batch, seed=ranks.rank)
        yield iter(lambda: batch, None)
        return
    table = open_split(config.data, "train", nouns=config.objectives.reads().nouns)
    dataset = ClipDataset(
        config.data,
        "train",
        ranks.from_first(lambda: prepare_tokenizer(config.data, table)),
        train=True,
        frames=config.video.frames,
        image_size=config.video.image_size,
        table=table,
        seed=config.run.seed,
        nouns=config.objectives.reads().nouns,
    )
    loader = build_loader(
        config.data,
        dataset,
        batch_size=local_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.run.seed,
        pin_memory=ranks.device.type == "cuda",
    )
    with loader:
        yield loader.forever()
