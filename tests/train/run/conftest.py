"""A loop around the tiny model, with a loader of numbered batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.ranks.signals import PendingSignal
from svilm_fast.train.run.hooks import Hook
from svilm_fast.train.run.loop import Loop, RunEvaluator
from svilm_fast.train.run.metrics_log import MetricsLog
from svilm_fast.train.run.progress import Display
from svilm_fast.train.run.throughput import Meter


@dataclass
class TinyBatch:
    tensors: dict[str, torch.Tensor]
    ids: list[str]


class TinyLoader:
    """Yields numbered batches and remembers where it stands."""

    def __init__(self, batch_of: Callable, poisoned: tuple[int, ...] = ()) -> None:
        self.batch_of, self.poisoned, self.position = batch_of, poisoned, 0

    def forever(self) -> Iterator[TinyBatch]:
        while True:
            tensors = self.batch_of(self.position)
            if self.position in self.poisoned:
                tensors["targets"][0, 0] = float("inf")
            self.position += 1
            yield TinyBatch(tensors, [f"clip-{self.position - 1}-{row}" for row in range(8)])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.fixture
def make_loop(make_engine, batch_of, tmp_path: Path):
    logs: list[MetricsLog] = []

    def make(
        *overrides: str,
        start_step: int = 0,
        poisoned: tuple[int, ...] = (),
        pending: PendingSignal | None = None,
        engine: Engine | None = None,
        loader: TinyLoader | None = None,
        steps: int = 6,
        hooks: tuple[Hook, ...] = (),
    ) -> Loop:
        shared = ("logging.every_steps=2", "logging.tensorboard=false")
        engine = engine or make_engine(*shared, *overrides)
        files = RunFiles(tmp_path)
        logs.append(MetricsLog(engine.config, files, first=True, start_step=start_step))
        return Loop(
            engine,
            loader or TinyLoader(batch_of, poisoned),
            engine.config,
            files,
            total_steps=steps,
            start_step=start_step,
            make_inputs=lambda batch, step: batch.tensors,
            evaluators=[
                RunEvaluator(
                    "toy",
                    engine.config.evaluation.every_steps,
                    engine.config.evaluation.at_end,
                    lambda engine, step: {"toy/score": float(step)},
                )
            ],
            metrics=logs[-1],
            display=Display("off", first=True, total_steps=steps, start_step=0, on_gpu=False),
            meter=Meter(8, 1, 1e9, None),
            pending=pending or PendingSignal(),
            hooks=hooks,
        )

    yield make
    for log in logs:
        log.close()
