"""Jobs of a table: what they share, and what changes their identity."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from svilm_fast.train.campaigns.jobs import TableJob, table_jobs
from svilm_fast.train.campaigns.table import ResultTable

CONTENT: dict[str, Any] = {
    "title": "Three runs",
    "seeds": [0, 1],
    "runs": {
        "pretrained": {"config": "demo", "seed": 7, "set": ["data.train={out}/world/train"]},
        "tuned": {
            "config": "demo",
            "task": "retrieval",
            "weights_from": "pretrained",
            "set": ["optimizer.lr=1e-4"],
        },
        "scratch": {"config": "demo"},
    },
    "sections": {
        "one": {"title": "T", "rows": {"A": "tuned", "B": "scratch"}, "columns": {"x": "X"}}
    },
}


def jobs(out: Path, change: Any = lambda content: None) -> dict[tuple[str, int], TableJob]:
    content = copy.deepcopy(CONTENT)
    change(content)
    return table_jobs(ResultTable.model_validate(content), out, [0, 1])


def test_a_run_with_a_fixed_seed_is_shared(tmp_path: Path) -> None:
    found = jobs(tmp_path)
    assert found["pretrained", 0] is found["pretrained", 1]
    assert found["tuned", 0].before is found["pretrained", 0] is found["tuned", 1].before
    assert len(set(found.values())) == 5
    assert [job.name for job in found["tuned", 1].chain()] == ["pretrained", "tuned"]


def test_arguments(tmp_path: Path) -> None:
    found = jobs(tmp_path)
    first, tuned = found["pretrained", 0], found["tuned", 1]
    assert first.arguments[0] == "train"
    assert f"data.train={tmp_path}/world/train" in first.arguments
    assert tuned.arguments[:2] == ("finetune", "retrieval")
    assert tuned.arguments[2:4] == ("--weights-from", str(first.folder))
    assert f"run.dir={tuned.folder}" in tuned.arguments
    assert "run.seed=1" in tuned.arguments


def test_a_command_may_name_every_run_before_it(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        words = ["ckpt", "interpolate", "{pretrained}", "{after}", "--out", "{dir}/{scratch}"]
        content["runs"]["between"] = {"after": "tuned", "command": words}

    found = jobs(tmp_path, change)
    between = found["between", 1]
    folders = [str(found[name, 1].folder) for name in ("pretrained", "tuned")]
    # A run that does not come before keeps its mark, and the command fails.
    assert between.arguments[2:] == (*folders, "--out", f"{between.folder}/{{scratch}}")


def test_an_identity_follows_its_inputs(tmp_path: Path) -> None:
    before = jobs(tmp_path)
    other = jobs(tmp_path / "elsewhere")
    assert {k: job.identity for k, job in before.items()} == {
        k: job.identity for k, job in other.items()
    }

    def change(content: dict[str, Any]) -> None:
        content["runs"]["pretrained"]["set"].append("training.steps=3")

    after = jobs(tmp_path, change)
    assert after["scratch", 0].identity == before["scratch", 0].identity
    for name in ("pretrained", "tuned"):
        assert after[name, 0].identity != before[name, 0].identity
        assert after[name, 0].folder != before[name, 0].folder
