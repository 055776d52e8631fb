"""Which task a name stands for, and the keys of its block."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from svilm_fast.cli import app
from svilm_fast.core.errors import ConfigError
from svilm_fast.tasks.base import task_class, task_names, task_of
from svilm_fast.tasks.pretrain.task import Pretraining
from svilm_fast.train.checkpoint.resume import changed_settings
from svilm_fast.train.config.load import dump_config, load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.run_app import run_app
from tests.tasks.conftest import announce

TASK = "task.name=classification"


def test_pretraining_is_the_default_and_old_settings_know_nothing_of_it() -> None:
    config = load_config("demo")
    assert isinstance(task_of(config), Pretraining)
    old = config.model_dump(mode="json")
    assert old.pop("task") == {"name": "pretrain"}
    assert RunConfig.model_validate(old) == config
    assert changed_settings(old, config) == []


def test_a_plugin_has_its_own_keys(plugin, tmp_path: Path) -> None:
    config = load_config("demo", [TASK, "task.attribute=shape"])
    assert type(task_of(config)).__name__ == "Classification"
    assert config.task.model_dump() == {
        "name": "classification",
        "attribute": "shape",
        "dropout": 0.0,
        "every_steps": None,
    }
    kept = tmp_path / "config.yaml"
    kept.write_text(dump_config(config))
    assert load_config(str(kept)) == config
    assert "classification" in task_names()
    block = load_config("demo", ["task={name: classification}", "task.attribute=shape"])
    assert block.task == config.task
    with pytest.raises(ConfigError, match=r"'task\.atribute': did you mean 'task\.attribute'"):
        load_config("demo", [TASK, "task.atribute=shape"])
    kept.write_text("task: {name: classification, atribute: shape}")
    with pytest.raises(ConfigError, match=r"'task\.atribute': did you mean 'task\.attribute'"):
        load_config(str(kept))
    with pytest.raises(ConfigError, match=r"task\.attribute: .*'color' or 'shape'"):
        load_config("demo", [TASK, "task.attribute=taste"])
    with pytest.raises(ConfigError, match=r"unknown key 'task\.attribute'"):
        load_config("demo", ["task.attribute=shape"])


def test_objectives_are_not_needed_where_the_task_has_a_loss(plugin) -> None:
    off = [f"objectives.{name}.weight=0" for name in ("contrast", "grounding", "temporal")]
    assert not load_config("demo", [TASK, *off]).objectives.active()
    with pytest.raises(ConfigError, match="all objective weights are 0"):
        load_config("demo", off)


def test_both_towers_may_be_frozen_where_the_task_has_a_head(plugin) -> None:
    frozen = ("video.lock=true", "text.lock=true")
    assert load_config("demo", [TASK, *frozen]).text.lock is True
    with pytest.raises(ConfigError, match="leave no tower to train"):
        load_config("demo", frozen)


@pytest.mark.parametrize("name", ["nothing", "os:system", "trap:Trap", "trap", "../x"])
def test_an_unknown_name_is_refused_and_never_imported(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    """The name may come from a run folder that somebody else wrote."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = tmp_path / "config.yaml"
    kept.write_text(f"task: {{name: '{name}'}}")
    for read in (lambda: task_class(name), lambda: load_config(str(kept))):
        with pytest.raises(ConfigError, match=f"there is no task '{name}'; tasks: pretrain"):
            read()
    assert "trap" not in sys.modules


def test_two_packages_with_one_name_are_told(tmp_path: Path, monkeypatch) -> None:
    for folder, target in (("a", "first.module:One"), ("b", "second.module:Two")):
        monkeypatch.syspath_prepend(str(announce(tmp_path / folder, "twice", target)))
        package = tmp_path / folder / "twice_plugin-1.0.dist-info"
        package.rename(tmp_path / folder / f"{folder}_plugin-1.0.dist-info")
        metadata = tmp_path / folder / f"{folder}_plugin-1.0.dist-info" / "METADATA"
        metadata.write_text(f"Metadata-Version: 2.1\nName: {folder}-plugin\nVersion: 1.0\n")
    with pytest.raises(ConfigError, match="announced by 2 installed packages"):
        task_class("twice")


def test_what_is_no_task_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(announce(tmp_path, "wrong", "pathlib:Path")))
    with pytest.raises(ConfigError, match=r"'wrong' \(pathlib:Path\) is not a subclass"):
        task_class("wrong")


def test_a_command_trains_no_other_task_than_it_says(plugin, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: demo\ntask: {name: classification}\n")
    assert run_app(app, ("pretrain", "-c", str(recipe), "--print-config")) == 2
    assert "name task 'classification', and this command trains 'pretrain'" in (
        capsys.readouterr().err
    )
    for more in (("-c", str(recipe)), ("-c", "demo", "--task", "classification")):
        assert run_app(app, ("train", *more, "--print-config")) == 0
        assert "attribute: color" in capsys.readouterr().out


def test_a_dry_run_of_a_plugin_counts_its_parameters(plugin, capsys) -> None:
    arguments = ("train", "-c", "demo", "--task", "classification", "--dry-run")
    assert run_app(app, (*arguments, "video.lock=true", "text.lock=true")) == 0
    told = capsys.readouterr().out
    width = load_config("demo").model.embed_dim
    assert f"{(width + 1) * 6:,} of them trained" in told
    assert run_app(app, (*arguments, "deepspeed.zero_stage=auto")) == 0
    assert "counts neither FLOPs nor memory" in capsys.readouterr().out
