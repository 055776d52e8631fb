"""`svilm finetune`: which weights and settings a fine-tuning starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from svilm_fast.cli import app
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app

FROZEN = ("video.lock=true", "text.lock=true")
# A model that differs from the recipe's in every inherited block.
OTHER = (
    "model.embed_dim=24",
    "video.width=48",
    "video.drop.rate=0.5",
    "text.lock=1",
    "data.tokenizer.noun_length=7",
)


@pytest.fixture
def recipe(settings, tmp_path: Path) -> Path:
    """The recipe of a short classification run."""
    values: dict = {"base": "demo", "task": {"name": "classification"}}
    for text in (*settings("tuned", *FROZEN), "report.at_end=false", "run.threads=1"):
        *path, last = text.partition("=")[0].split(".")
        block = values
        for part in path:
            block = block.setdefault(part, {})
        block[last] = yaml.safe_load(text.partition("=")[2])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def pretrained(settings, ranks, tmp_path: Path) -> Path:
    short = ("training.steps=1", "evaluation.at_end=false", "report.at_end=false")
    train_as_rank(load_config("demo", settings("pretrained", *short, *OTHER)), Start(), ranks)
    return tmp_path / "pretrained"


def printed(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert run_app(app, ("finetune", *arguments, "--print-config")) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_model_and_the_tokenizer_are_those_of_the_run(
    plugin, pretrained: Path, recipe: Path, capsys
) -> None:
    given = ("classification", "--config", str(recipe))
    for source in (pretrained, pretrained / "portable"):
        found = printed(capsys, *given, "--weights-from", str(source))
        assert (found["model"]["embed_dim"], found["video"]["width"]) == (24, 48)
        assert found["data"]["tokenizer"]["noun_length"] == 7
    # How the weights are trained stays the recipe's, and the command line wins over both.
    assert found["video"]["drop"]["rate"] == 0.0
    assert found["text"]["lock"] is True
    assert found["training"]["global_batch"] == 8
    wins = printed(capsys, *given, "--weights-from", str(pretrained), "video.width=64")
    assert (wins["video"]["width"], wins["model"]["embed_dim"]) == (64, 24)
    scratch = printed(capsys, *given, "--from-scratch")
    assert scratch["video"]["width"] != 48


def test_a_run_is_tuned_stopped_and_resumed(
    plugin, pretrained: Path, recipe: Path, tmp_path: Path, ranks, monkeypatch, capsys
) -> None:
    # The process group of the tests is used; a command would start and end its own.
    monkeypatch.setattr(
        "svilm_fast.train.run.session.train",
        lambda config, start: train_as_rank(config, start, ranks),
    )
    start = ("--config", str(recipe), "--weights-from", str(pretrained))
    stopped = ("training.stop_after_steps=2", "task.attribute=shape")
    assert run_app(app, ("finetune", "classification", *start, *stopped)) == 0
    told = capsys.readouterr().out
    assert "new, they keep their initial values: 2 (head.weight, head.bias)" in told
    # The settings of the run hold although the recipe is not named again.
    again = ("classification", "--resume", f"run.dir={tmp_path / 'tuned'}")
    assert printed(capsys, *again)["task"]["attribute"] == "shape"
    resumed = ("finetune", *again, "training.stop_after_steps=null")
    assert run_app(app, resumed) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "resumed at step 2" in told
    assert "step 6 classification | top1 " in told


def fails(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert run_app(app, ("finetune", *arguments)) == 2
    return capsys.readouterr().err


def test_a_wrong_start_is_refused(plugin, recipe: Path, tmp_path: Path, capsys) -> None:
    given = ("classification", "--config", str(recipe))
    assert "give either --weights-from RUN" in fails(capsys, *given)
    weights = ("--weights-from", str(tmp_path))
    assert "not both" in fails(capsys, *given, *weights, "--from-scratch")
    assert "leave out --weights-from" in fails(capsys, *given, *weights, "--resume")
    assert "neither a portable checkpoint" in fails(capsys, *given, *weights)
    assert "use `svilm pretrain`" in fails(capsys, "pretrain", "--from-scratch")
    assert "there is no task 'clasification'" in fails(capsys, "clasification", "--from-scratch")
    assert "give a recipe with --config" in fails(capsys, "classification", "--from-scratch")
    nothing = ("--resume", f"run.dir={tmp_path / 'none'}")
    assert "give a recipe" in fails(capsys, "classification", *nothing)


def test_a_run_without_portable_weights_or_settings_is_told(
    plugin, pretrained: Path, recipe: Path, capsys
) -> None:
    given = ("classification", "--config", str(recipe), "--weights-from")
    (pretrained / "portable" / "config.yaml").unlink()
    assert printed(capsys, *given, str(pretrained))["video"]["width"] == 48
    (pretrained / "config.yaml").unlink()
    assert "portable has no config.yaml" in fails(capsys, *given, str(pretrained))
    (pretrained / "config.yaml").write_text("run: {}\n")
    shutil.rmtree(pretrained / "portable")
    assert f"svilm ckpt convert --run {pretrained}" in fails(capsys, *given, str(pretrained))
