"""A tiny model with the trainable model's interface, and engines around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from svilm_fast.data.world import render_world
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.engine.engine import Engine, start_engine
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.ranks.process_group import Ranks


@dataclass
class TinyOutput:
    loss: Tensor
    metrics: dict[str, Tensor]


class TinyModel(nn.Module):
    """Fits targets [b, 2] from features [b, 4], with dropout so that random state matters."""

    def __init__(self, width: int = 8, dropout: float = 0.25) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2)
        )
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: dict[str, Tensor]) -> TinyOutput:
        error = self.log_scale.exp() * self.body(inputs["features"]) - inputs["targets"]
        loss = error.float().square().mean()
        return TinyOutput(loss, {"loss_fit": loss.detach()})


def tiny_batch(step: int, rows: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    features = torch.randn(rows, 4, generator=generator)
    return {"features": features, "targets": features[:, :2] * 0.5 + 0.25}


def tiny_config(*overrides: str) -> RunConfig:
    defaults = [
        "run.dir=unused",
        "training.precision=fp32",
        "training.global_batch=8",
        "training.steps=20",
        "distributed.device=cpu",
        "deepspeed.bucket_elements=1000",
        "optimizer.lr=0.02",
    ]
    return load_config(None, [*defaults, *overrides])


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, train=24, val=6, test=6, size=32, frames=8, workers=1, progress=False)
    return folder


@pytest.fixture
def configure(world: Path, tmp_path: Path):
    def make(*overrides: str, run: str = "run") -> RunConfig:
        small = [
            f"run.dir={tmp_path / run}",
            *(f"data.{split}={world / split}" for split in ("train", "val", "test")),
            *SMALL_MODEL,
            "video.drop.rate=0.25",
            "video.drop_path=0.2",
            "training.global_batch=8",
            "training.steps=6",
            "logging.every_steps=1",
            "logging.tensorboard=false",
            "evaluation.batch_size=4",
        ]
        return load_config("demo", [*small, *overrides])

    return make


@pytest.fixture
def make_engine(ranks: Ranks) -> Iterator[Callable[..., Engine]]:
    """Build engines around a tiny model; they are closed when the test ends."""
    engines: list[Engine] = []

    def make(
        *overrides: str,
        width: int = 8,
        dropout: float = 0.25,
        seed: int = 0,
        prepare: Callable[[nn.Module], object] = lambda model: None,
    ) -> Engine:
        torch.manual_seed(seed)
        model = TinyModel(width, dropout)
        prepare(model)
        engines.append(start_engine(model, tiny_config(*overrides), ranks))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def batch_of() -> Callable[..., dict[str, Tensor]]:
    return tiny_batch


@pytest.fixture(scope="module")
def plain_training() -> tuple[nn.Module, torch.optim.Optimizer, Callable]:
    """A plain torch model with its optimizer and batches, without DeepSpeed."""
    torch.manual_seed(0)
    model = TinyModel(8, 0.0)
    return model, build_optimizer(model, tiny_config().optimizer), tiny_batch
