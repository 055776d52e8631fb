"""Retrieval as a task: fine-tuned from pre-training, its encoders unchanged, extras reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import ConfigError
from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.tasks.base import task_of
from svilm_fast.tasks.pretrain.retrieval import sharpness_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app

QUICK = ("training.steps=2", "training.stop_after_steps=null", "report.at_end=false")


@pytest.fixture
def pretrained(settings, ranks, tmp_path: Path) -> Path:
    short = ("training.steps=1", "evaluation.at_end=false", "report.at_end=false")
    train_as_rank(load_config("demo", settings("pretrained", *short)), Start(), ranks)
    return tmp_path / "pretrained"


def test_a_pretrained_model_is_tuned_by_contrast_alone_and_evaluated(
    settings, pretrained: Path, ranks, monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(
        "svilm_fast.train.run.session.train",
        lambda config, start: train_as_rank(config, start, ranks),
    )
    given = settings("tuned", *QUICK, "task.rerank=3")
    command = ("finetune", "retrieval", *given, "--weights-from", str(pretrained))
    assert run_app(app, command) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "left out" in told
    tuned = tmp_path / "tuned"
    records = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert steps
    assert all("loss_contrast" in step for step in steps)
    assert not any("loss_grounding" in step or "loss_temporal" in step for step in steps)
    assert any("retrieval/t2v_R@1" in record for record in records)
    capsys.readouterr()
    assert run_app(app, ("evaluate", "task", "--run", str(tuned), "--device", "cpu")) == 0
    shown = capsys.readouterr().out
    written = json.loads((tuned / "evaluation" / "test_retrieval.json").read_text())
    assert list(written["apart"]) == [
        "set-level dsl t2v",
        "set-level dsl v2t",
        "set-level qbnorm t2v",
        "re-rank 3 by nouns t2v",
    ]
    assert written["protocol"]["split"]["name"] == "test"
    assert written["protocol"]["frames_clips_crops"] == "4 x 1 x 1"
    assert "set-level" in json.dumps(written["protocol"]["reported_apart"])
    assert "retrieval/t2v_R@1" in shown


def test_loss_all_trains_every_objective_and_contrast_keeps_the_encoder(settings) -> None:
    names = {}
    for loss in ("all", "contrast"):
        config = load_config("tasks/retrieval", settings("x", f"task.loss={loss}"))
        model = task_of(config).model()
        names[loss] = [name for name, _ in model.named_parameters()]
        assert set(model.objectives.modules_by_name) == (
            {"contrast", "grounding", "temporal"} if loss == "all" else {"contrast"}
        )
        assert config.objectives.grounding.weight == 1.0
    encoder = [name for name in names["all"] if name.startswith("encoder.")]
    assert encoder == [name for name in names["contrast"] if name.startswith("encoder.")]
    assert any("groups" in name for name in encoder)


def test_a_model_without_groups_stays_without(settings) -> None:
    config = load_config("tasks/retrieval", settings("x", "objectives.grounding.weight=0"))
    names = [name for name, _ in task_of(config).model().named_parameters()]
    assert not any("groups" in name for name in names)


def test_wrong_settings_are_refused(settings) -> None:
    config = load_config("tasks/retrieval", settings("x", "objectives.contrast.weight=0"))
    with pytest.raises(ConfigError, match=r"task\.loss=contrast: no objective of this kind"):
        task_of(config)
    config = load_config("tasks/retrieval", settings("x", "task.protocol=1ka"))
    with pytest.raises(ConfigError, match=r"task\.protocol: unknown protocol '1ka'"):
        task_of(config)
    with pytest.raises(ConfigError, match="set_level"):
        load_config("tasks/retrieval", settings("x", "task.set_level=[dls]"))


def test_a_list_of_another_size_is_refused_before_training(settings) -> None:
    config = load_config("tasks/retrieval", settings("x", "task.protocol=msrvtt-1ka"))
    task = task_of(config)
    with pytest.raises(ValueError, match="MSR-VTT 1k-A has 1,000 videos"):
        task.evaluators(prepare_tokenizer(config.data), "test", None)


def test_the_trained_sharpness_is_used(settings) -> None:
    config = load_config("tasks/retrieval", settings("x", "task.loss=all"))
    model = task_of(config).model()
    initial = sharpness_of(model, config)
    assert initial == pytest.approx(config.objectives.grounding.beta.initial)
    with torch.no_grad():
        model.objectives.grounding.beta.scale_value.mul_(2.0)
    assert sharpness_of(model, config) != initial
