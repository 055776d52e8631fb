"""Objectives of installed packages, known to every command without an import by the user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.plugins import OBJECTIVES_GROUP, TASKS_GROUP
from svilm_fast.objectives.base import KINDS, kind_names
from svilm_fast.train.config.load import load_config
from tests.tasks.conftest import announce

SOURCE = """
from typing import Literal
from svilm_fast.objectives.base import ObjectiveConfig
from svilm_fast.objectives.features import Reads

class Announced(ObjectiveConfig):
    kind: Literal["announced"] = "announced"
    sharpness: float = 2.0

    def reads(self):
        return Reads.of("clean", "video")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch):
    """`installed(name, attribute)`: a package announces an attribute of its module."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "announced_objective.py").write_text(SOURCE)

    def install(name: str, attribute: str) -> None:
        target = f"announced_objective:{attribute}"
        monkeypatch.syspath_prepend(str(announce(tmp_path, name, target, OBJECTIVES_GROUP)))

    yield install
    KINDS.pop("announced", None)
    sys.modules.pop("announced_objective", None)


def test_an_announced_objective_is_configured_like_the_others(installed) -> None:
    installed("announced", "Announced")
    assert "announced" in kind_names()
    assert load_config("demo").objectives.active().keys().isdisjoint({"announced"})
    assert "announced_objective" not in sys.modules
    config = load_config("demo", ["objectives.announced.sharpness=3"])
    assert config.objectives.active()["announced"].sharpness == 3.0
    second = load_config("demo", ["objectives.other.kind=announced"])
    assert type(second.objectives.active()["other"]) is KINDS["announced"]
    with pytest.raises(ConfigError, match=r"did you mean 'objectives\.announced"):
        load_config("demo", ["objectives.anounced.weight=1"])


@pytest.mark.parametrize("name, attribute", [("announced", "Reads"), ("alias", "Announced")])
def test_what_is_no_objective_of_that_kind_is_refused(installed, name, attribute) -> None:
    installed(name, attribute)
    with pytest.raises(ConfigError, match=f"'{name}' .*{attribute}.* is no subclass of"):
        load_config("demo", [f"objectives.{name}.weight=1"])


@pytest.mark.parametrize("group", [OBJECTIVES_GROUP, TASKS_GROUP])
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch, group) -> None:
    monkeypatch.syspath_prepend(str(announce(tmp_path, "gone", "not_there_mod:Thing", group)))
    setting = "objectives.gone.weight=1" if group == OBJECTIVES_GROUP else "task.name=gone"
    with pytest.raises(ConfigError, match=r"\(not_there_mod:Thing\) cannot be imported: ModuleN"):
        load_config("demo", [setting])
