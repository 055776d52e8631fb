"""A training step as the trainer runs it: loader or random clips, engine, optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from svilm_fast.bench.synthetic import random_batch
from svilm_fast.core.errors import UserError
from svilm_fast.core.trace_ranges import phase
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.loader import build_loader
from svilm_fast.data.tokenizer import load_or_train_tokenizer
from svilm_fast.tasks.base import Task, task_of
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

    synthetic: random clips that are made once, so that the step does not wait for data.
    """
    if synthetic and config.task.name != DEFAULT_TASK:
        raise UserError(
            f"--synthetic makes clips and captions for {DEFAULT_TASK!r} only, and the settings "
            f"name task {config.task.name!r}; leave --synthetic out"
        )
    task = task_of(config)
    seed_everything(
        config.run.seed, deterministic=config.run.deterministic, threads=config.run.threads
    )
    with _batches(task, config, ranks, synthetic) as batches:
        engine = start_engine(task.model(), config, ranks)
        numbers = itertools.count()

        def step() -> object:
            with phase("data"):
                batch = next(batches)
            with phase("inputs"):
                inputs = task.inputs(batch, next(numbers), ranks)
            return engine.step(inputs, config.optimizer.lr)

        try:
            yield step
        finally:
            engine.close()


@contextmanager
def _batches(
    task: Task, config: RunConfig, ranks: Ranks, synthetic: bool
) -> Iterator[Iterator[ClipBatch]]:
    local_batch = local_batch_of(config, ranks.world_size)
    if synthetic:
        yield itertools.repeat(random_batch(config, local_batch, seed=ranks.rank))
        return
    table = task.samples("train")
    tokenizer = ranks.from_first(
        lambda: (
            load_or_train_tokenizer(config.data.tokenizer, ())  # the task reads no text
            if table is None
            else prepare_tokenizer(config.data, table)
        )
    )
    loader = build_loader(
        config.data,
        task.dataset("train", tokenizer, train=True, table=table),
        batch_size=local_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.run.seed,
        pin_memory=ranks.device.type == "cuda",
    )
    with loader:
        yield loader.forever()
