"""A task from outside the package: trained, stopped, resumed, evaluated and reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, ConfigError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.report.curves import Panel, panels_with, read_metrics
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.environment import environment_without_launcher
from svilm_fast.train.run.session import Start, _open_evaluators, train_as_rank
from svilm_fast.train.run_app import run_app

WEIGHTS = "model.safetensors"
FROZEN = ("video.lock=true", "text.lock=true", "optimizer.lr=0.01", "report.at_end=false")
TASK = ("task.name=classification", "task.dropout=0.25", *FROZEN)


@pytest.fixture
def pretrained(settings, ranks, tmp_path: Path) -> Path:
    short = ("training.steps=1", "evaluation.at_end=false", "report.at_end=false")
    train_as_rank(load_config("demo", settings("pretrained", *short)), Start(), ranks)
    return tmp_path / "pretrained" / "portable"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "portable" / WEIGHTS)


def numbers(records: list[dict]) -> list[tuple]:
    names = ("step", "loss", "accuracy_top1", "classification/top1")
    return [tuple(record.get(name) for name in names) for record in records]


def test_a_plugin_trains_resumes_and_is_evaluated(
    plugin, pretrained: Path, settings, ranks, tmp_path: Path, read_records, capsys
) -> None:
    start = Start(weights_from=pretrained)
    config = load_config("demo", settings("whole", *TASK, "evaluation.every_steps=2"))
    capsys.readouterr()
    assert train_as_rank(config, start, ranks).finished
    told = capsys.readouterr().out
    total = len(weights(tmp_path / "whole"))
    assert f"{total - 2} of the model's {total} tensors taken" in told
    assert "new, they keep their initial values: 2 (head.weight, head.bias)" in told
    own = sum(name.startswith("objectives.") for name in load_file(pretrained / WEIGHTS))
    assert f"in the weights alone, left out: {own} (objectives." in told
    assert "step 2 classification | top1 " in told
    steps = [line for line in told.splitlines() if line.startswith("step ") and "| loss" in line]
    assert len(steps) == 6
    assert all(re.search(r" \| acc top1 \d+%", line) for line in steps)

    # Frozen towers stay as they were pre-trained, bit for bit; the head learns.
    before, after = load_file(pretrained / WEIGHTS), weights(tmp_path / "whole")
    frozen = [name for name in after if name.startswith("encoder.")]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert after["head.weight"].shape == (6, config.model.embed_dim)

    # Stopped and resumed: the same numbers and weights as in one go.
    halved = settings("halved", *TASK, "evaluation.every_steps=2")
    train_as_rank(load_config("demo", [*halved, "training.stop_after_steps=3"]), start, ranks)
    assert train_as_rank(load_config("demo", halved), Start(resume=True), ranks).finished
    records = {run: read_records(tmp_path / run / "metrics.jsonl") for run in ("whole", "halved")}
    assert numbers(records["whole"]) == numbers(records["halved"])
    evaluated = [r for r in records["whole"] if "classification/top1" in r]
    assert [record["step"] for record in evaluated] == [2, 4, 6]
    resumed = weights(tmp_path / "halved")
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    assert not torch.equal(after["head.weight"], torch.zeros_like(after["head.weight"]))

    # After the run, the command gives the figure of its last evaluation on the same clips.
    run = str(tmp_path / "whole")
    arguments = ("evaluate", "task", "--run", run, "--split", "val", "--device", "cpu")
    assert run_app(app, arguments) == 0
    written = json.loads((tmp_path / "whole" / "evaluation/val_classification.json").read_text())
    assert written["clips"] == 8
    assert written["classification/top1"] == evaluated[-1]["classification/top1"]
    during = tmp_path / "whole" / "evaluation" / "classification_val_step_00000006.json"
    assert json.loads(during.read_text()) == written
    assert f"{written['classification/top1']:.4g}" in capsys.readouterr().out
    assert run_app(app, ("report", "--run", run, "--split", "val", "--device", "cpu")) == 0
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "classification/top1" in page
    assert "<td>attribute</td><td>color</td>" in page
    assert "weight of contrast" not in page  # the objectives are not read
    assert "right partner in the batch" not in page
    assert "Accuracy in the batch, %" in [panel.title for panel in panels_shown(tmp_path / "whole")]


def panels_shown(run: Path) -> list[Panel]:
    """The charts of the page that have a line in the run's log."""
    series = read_metrics(run / "metrics.jsonl")
    config = load_config(str(run / "config.yaml"))
    panels = panels_with(task_of(config).metrics())
    return [panel for panel in panels if any(name in series for name, _ in panel.lines)]


OFF = ("evaluation.every_steps=0", "evaluation.at_end=false")


def test_the_timing_of_the_task_holds_where_the_block_is_off(
    plugin, settings, ranks, tmp_path: Path, read_records
) -> None:
    config = load_config("demo", settings("own", *TASK, *OFF, "task.every_steps=2"))
    train_as_rank(config, Start(), ranks)
    records = read_records(tmp_path / "own" / "metrics.jsonl")
    assert [r["step"] for r in records if "classification/top1" in r] == [2, 4]


def test_with_evaluation_off_pretraining_opens_no_held_out_clips(settings, ranks, caplog) -> None:
    for val in ("data.val=no/such/shards", "data.val=null"):
        config = load_config("demo", settings("off", *OFF, val))
        assert _open_evaluators(task_of(config), config, Tokenizer.train(["a"], 300), ranks) == []
    assert not caplog.records


def test_weights_that_the_task_does_not_allow_are_refused(
    plugin, pretrained: Path, settings, ranks
) -> None:
    narrow = load_config("demo", settings("narrow", *TASK, "video.width=48"))
    message = r"do not fit the model; of another shape: \d+ \(encoder\.video\.\S+ \[.* more\)"
    with pytest.raises(CheckpointError, match=message):
        train_as_rank(narrow, Start(weights_from=pretrained), ranks)
    exact = load_config("demo", settings("exact", *TASK))
    with pytest.raises(CheckpointError, match=r"has no parameter 'head\.weight'"):
        train_as_rank(exact, Start(init_from=pretrained), ranks)


def test_a_gradient_cache_needs_the_two_halves_of_a_model(plugin, settings, ranks) -> None:
    config = load_config("demo", settings("cached", *TASK, "training.micro_batch=2"))
    with pytest.raises(ConfigError, match="two halves `embed` and `objective`, which Classifier"):
        train_as_rank(config, Start(), ranks)


def test_a_run_of_another_task_is_not_resumed(plugin, pretrained: Path, settings, ranks) -> None:
    config = load_config("demo", settings("pretrained", *TASK))
    with pytest.raises(CheckpointError, match=r"is a run of task 'pretrain', .* 'classification'"):
        train_as_rank(config, Start(resume=True), ranks)


@pytest.mark.slow
def test_the_command_line_trains_an_installed_plugin(
    pretrained: Path, settings, installed: Path, tmp_path: Path
) -> None:
    paths = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    environment = environment_without_launcher() | {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu"}

    def run(module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    whole = settings("cli", *FROZEN, "training.steps=2", "task.attribute=shape")
    train = ("--task", "classification", "--config", "demo")
    told = run("svilm_fast.train.train", *train, *whole, "--weights-from", str(pretrained))
    assert "new, they keep their initial values: 2 (head.weight, head.bias)" in told
    assert "step 2 classification | top1 " in told
    told = run("svilm_fast.cli", "evaluate", "task", "--run", str(tmp_path / "cli"))
    assert "classification, test split, step 2" in told
    assert weights(tmp_path / "cli")["head.weight"].shape[0] == 8


def test_a_head_of_another_shape_starts_anew(
    plugin, settings, ranks, tmp_path: Path, capsys
) -> None:
    """The rest is taken in full precision, although the engine's parameters are bf16."""
    short = (*TASK, "training.steps=1", "evaluation.at_end=false")
    first = load_config("demo", settings("first", *short))
    train_as_rank(first, Start(), ranks)
    still = (*short, "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    changes = ("task.attribute=shape", "training.precision=bf16", "video.lock=1")
    second = load_config("demo", settings("second", *still, *changes))
    train_as_rank(second, Start(weights_from=tmp_path / "first" / "portable"), ranks)
    told = capsys.readouterr().out
    assert "of another shape, they keep their initial values: 2 (head.weight, head.bias)" in told
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert after["head.weight"].shape[0] == 8
    trained = [name for name in after if name.startswith("encoder.video.blocks.1.")]
    assert trained
    for name in trained:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)
