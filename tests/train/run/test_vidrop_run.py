"""Whole runs of the demo of our reading of ViDROP: resume, two ranks, collapse, plan, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.core.errors import CollapseError
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train_as_rank

PROGRAM = Path(__file__).with_name("vidrop_program.py")
CROPS = ("objectives.vidrop.crops.frames=2", "objectives.vidrop.crops.image_size=16")
SMALL = (
    "video.frames=4",
    "video.image_size=32",
    "video.num_segments=2",
    "video.patch=8",
    "video.width=24",
    "video.depth=2",
    "text.width=24",
    "text.depth=1",
    "text.vocab_size=300",
    *CROPS,
    "training.global_batch=8",
    "training.steps=4",
    "logging.every_steps=1",
    "logging.tensorboard=false",
    "report.at_end=false",
)


@pytest.fixture
def settings(world: Path, tmp_path: Path):
    def make(run: str, *overrides: str) -> list[str]:
        data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
        return [f"run.dir={tmp_path / run}", *data, *SMALL, *overrides]

    return make


def files_of(folder: Path, read_records) -> tuple[list[dict], dict[str, torch.Tensor]]:
    records = [
        {name: found.get(name) for name in ("loss", "feature_spread", "feature_rank")}
        for found in read_records(folder / "metrics.jsonl")
        if "loss" in found
    ]
    tensors = {
        f"{name}/{key}": value
        for name in ("model", "ema")
        for key, value in load_file(folder / "portable" / f"{name}.safetensors").items()
    }
    return records, tensors


def assert_equal_runs(first: Path, second: Path, read_records) -> None:
    records, weights = files_of(first, read_records)
    again, reached = files_of(second, read_records)
    assert len(records) == 4
    assert again == records
    assert weights.keys() == reached.keys()
    for name, value in weights.items():
        assert torch.equal(value, reached[name]), name


def test_a_stopped_run_resumes_bit_for_bit(settings, ranks, tmp_path: Path, read_records) -> None:
    def config(run: str, *overrides: str):
        return load_config("vidrop_demo", settings(run, *overrides))

    train_as_rank(config("whole"), Start(), ranks)
    assert train_as_rank(config("broken", "training.stop_after_steps=2"), Start(), ranks).step == 2
    assert train_as_rank(config("broken"), Start(resume=True), ranks).step == 4
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken", read_records)


def test_collapse_ends_a_run_that_asks_for_it(settings, ranks, capsys) -> None:
    collapse = "objectives.vidrop.collapse"
    early = (f"{collapse}.after_steps=2", f"{collapse}.least_rank=100")
    warned = load_config("vidrop_demo", settings("warned", *early))
    assert train_as_rank(warned, Start(), ranks).finished
    assert capsys.readouterr().out.count("the features have collapsed: feature_rank") == 3
    stopped = load_config("vidrop_demo", settings("stopped", *early, f"{collapse}.action=stop"))
    with pytest.raises(CollapseError, match="step 2: the features have collapsed") as caught:
        train_as_rank(stopped, Start(), ranks)
    assert caught.value.exit_code == 6


@pytest.mark.slow
def test_two_ranks_under_zero_1_resume_bit_for_bit(
    settings, tmp_path: Path, run_on_ranks, read_records
) -> None:
    recipe = ["--config", "vidrop_demo"]
    calls = [
        [*recipe, *settings("whole")],
        [*recipe, *settings("broken", "training.stop_after_steps=2")],
        [*recipe, "--resume", *settings("broken")],
    ]
    for number, call in enumerate(calls):
        jobs = tmp_path / f"calls_{number}.json"
        jobs.write_text(json.dumps([call]))
        run_on_ranks(2, PROGRAM, jobs, timeout=600)
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken", read_records)


@pytest.mark.parametrize("recipe", ["vidrop_demo", "vidrop_base"])
def test_it_is_planned(recipe: str) -> None:
    found = CliRunner().invoke(
        app, ["plan", "--config", recipe, "--gpus", "8", "--memory", "40GiB"]
    )
    assert found.exit_code == 0, found.output
    assert "teacher" in found.output
