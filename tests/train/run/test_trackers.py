"""wandb and trackio are called by their own signatures, and a resumed run keeps its identity."""

from __future__ import annotations

import inspect
import json
import sys
import types
from pathlib import Path

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder.ownership import claim, mark
from svilm_fast.train.folder.prepare import clear, fixed_names
from svilm_fast.train.run.metrics_log import MetricsLog, check_trackers

# Parameters of wandb 0.31 and trackio 0.43, in their order.
SIGNATURES = {
    "wandb": {
        "init": "entity project dir id name notes tags config config_exclude_keys "
        "config_include_keys allow_val_change group job_type mode force reinit resume resume_from "
        "fork_from save_code tensorboard sync_tensorboard monitor_gym settings anonymous",
        "log": "data step commit",
        "finish": "exit_code",
    },
    "trackio": {
        "init": "project name group space_id server_url dataset_id bucket_id config resume "
        "settings private embed auto_log_gpu gpu_log_interval auto_log_cpu cpu_log_interval "
        "webhook_url webhook_min_level",
        "log": "metrics step",
        "finish": "",
    },
}


def double(package: str, calls: list[tuple[str, dict]]) -> types.ModuleType:
    """A module whose functions take exactly the arguments of the real ones, and note them."""
    module = types.ModuleType(package)
    module.__spec__ = types.SimpleNamespace(name=package)

    def record(name: str, words: str):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(word, kind) for word in words.split()])

        def call(*args: object, **kwargs: object) -> None:
            calls.append((name, dict(signature.bind_partial(*args, **kwargs).arguments)))

        return call

    for name, words in SIGNATURES[package].items():
        setattr(module, name, record(name, words))
    return module


def run_once(tmp_path: Path, package: str, start_step: int) -> None:
    config = load_config(
        None, [f"run.dir={tmp_path}", "run.name=nightly", f"logging.{package}=true"]
    )
    config.logging.tensorboard = False
    log = MetricsLog(config, RunFiles(tmp_path), first=True, start_step=start_step)
    log.write(start_step + 1, {"loss": 0.5})
    log.close()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_under_its_identity(
    package: str, tmp_path: Path, monkeypatch
) -> None:
    calls: list[tuple[str, dict]] = []
    monkeypatch.setitem(sys.modules, package, double(package, calls))
    run_once(tmp_path, package, 0)
    run_once(tmp_path, package, 5)
    assert [name for name, _ in calls] == ["init", "log", "finish"] * 2
    first, second = calls[0][1], calls[3][1]
    assert (first["resume"], second["resume"]) == ("never", "allow")
    assert first["project"] == second["project"] == "svilm-fast"
    assert first["config"]["run"]["name"] == "nightly"
    key = "id" if package == "wandb" else "name"
    assert first[key] == second[key]
    identity = json.loads((tmp_path / "tracking.json").read_text())["id"]
    assert first[key].endswith(identity)
    assert list(calls[4][1].values()) == [{"loss": 0.5}, 6]
    json.dumps(first["config"])


def test_a_new_run_in_the_same_folder_has_a_new_identity(tmp_path: Path, monkeypatch) -> None:
    calls: list[tuple[str, dict]] = []
    monkeypatch.setitem(sys.modules, "wandb", double("wandb", calls))
    run_once(tmp_path, "wandb", 0)
    run_once(tmp_path, "wandb", 0)
    files = RunFiles(tmp_path)
    mark(files, created="2026-01-01")
    claim(files, *fixed_names(files))
    clear(files)
    run_once(tmp_path, "wandb", 5)
    identities = [arguments["id"] for name, arguments in calls if name == "init"]
    assert len(set(identities)) == 3


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_its_install_line(package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = load_config(None, [f"logging.{package}=true"])
    with pytest.raises(ConfigError, match=rf"{package} is not installed; pip install 'svilm-fast"):
        check_trackers(config)
    check_trackers(load_config(None))
