"""The rank that the others wait for is named, and a fair group of ranks is not accused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from svilm_fast.train.config.load import dump_config
from svilm_fast.train.run.progress import summary
from svilm_fast.train.run.straggler import OwnWork, losses_end, straggler_figures

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TwoParts(nn.Module):
    """Two seconds of encoding, then losses of ten seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.objectives = nn.Identity()
        self.objectives.register_forward_hook(lambda *_: self.spend(10.0))

    def spend(self, seconds: float) -> None:
        self.clock.now += seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.spend(2.0)
        return self.objectives(x)


@pytest.mark.parametrize("stage, wanted", [(1, 2.5), (3, 0.5)])
def test_work_ends_before_the_first_collective(stage: int, wanted: float) -> None:
    clock = Clock()
    work, model = OwnWork(CPU, clock), TwoParts(clock)
    in_losses = losses_end(work, SimpleNamespace(model=model, zero_stage=stage))
    assert in_losses == (stage != 3)
    for waited in (0.25, 0.75):
        work.begin(waited)
        if not in_losses:
            work.end()
        model(torch.zeros(1))
    assert work.take() == pytest.approx(wanted)
    assert work.take() == 0.0


def test_a_model_without_objectives_is_timed_up_to_its_forward() -> None:
    engine = SimpleNamespace(model=nn.Linear(1, 1), zero_stage=1)
    assert not losses_end(OwnWork(CPU), engine)


def test_on_a_gpu_the_stream_is_timed(monkeypatch) -> None:
    clock = Clock()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    work = OwnWork(torch.device("cuda"))
    work.begin(0.5)
    clock.now += 3.0
    work.end()
    clock.now += 4.0
    work.end()
    assert work.take() == pytest.approx(3.5)


def test_the_slowest_rank_is_named() -> None:
    assert straggler_figures([1.0, 1.0, 4.0, 2.0]) == {
        "straggler_ratio": 2.0,
        "straggler_rank": 2,
        "straggler_seconds": 2.0,
    }
    assert straggler_figures([3.0]) == {}
    assert straggler_figures([0.0, 0.0]) == {}


@pytest.mark.parametrize(
    "ratio, seconds, shown", [(1.8, 0.4, True), (1.1, 0.4, False), (1.8, 0.04, False)]
)
def test_the_console_names_a_rank_that_costs_something(
    ratio: float, seconds: float, shown: bool
) -> None:
    figures = {"straggler_ratio": ratio, "straggler_rank": 7, "straggler_seconds": seconds}
    line = summary({"loss": 1.0, "seconds_per_step": 1.0, **figures}, on_gpu=True)
    assert ("slowest rank 7 (1.80x the mean)" in line) == shown
    assert summary({"loss": 1.0}, on_gpu=True) == "loss 1"


RANK = """
import os, sys, time
from svilm_fast.data.loader import ClipLoader
from svilm_fast.train import pretrain

forever = ClipLoader.forever

def slow(self):
    for batch in forever(self):
        time.sleep(0.5)
        yield batch

if os.environ["RANK"] == "1":
    ClipLoader.forever = slow
pretrain.leave(pretrain.main(["--config", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_rank_whose_loader_sleeps_is_named(
    configure, read_records, run_on_ranks, tmp_path: Path
) -> None:
    config = configure(
        "training.steps=4",
        "logging.every_steps=2",
        "evaluation.at_end=false",
        "report.at_end=false",
        "checkpoint.portable_at_end=false",
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    outputs = run_on_ranks(2, "-c", RANK, recipe, OMP_NUM_THREADS="1")
    # The first record holds the first step, in which both ranks warm up.
    last = read_records(Path(config.run.dir) / "metrics.jsonl")[-1]
    assert last["step"] == 4
    assert last["straggler_rank"] == 1
    assert last["straggler_ratio"] > 1.2
    shown = outputs[0][outputs[0].index("step 4/4 | ") :]  # in several lines
    assert f"slowest rank 1 ({last['straggler_ratio']:.2f}x the mean)" in shown
