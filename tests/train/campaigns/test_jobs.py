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


def one(out: Path, **content: Any) -> TableJob:
    """The job of a table's only run."""
    run = content.pop("run")
    section = {"title": "T", "rows": {"A": "only"}, "columns": {"x": "X"}}
    table = {"title": "T", "seeds": [0], "runs": {"only": run}, "sections": {"one": section}}
    return table_jobs(ResultTable.model_validate(table | content), out, [0])["only", 0]


def test_equal_runs_of_different_tables_are_one(tmp_path: Path) -> None:
    """A setting may stand in the table, in the run, or be the recipe's own."""
    plain = one(tmp_path, run={"config": "demo"})
    shared = one(tmp_path, run={"config": "demo"}, set=["optimizer.lr=0.0007"])
    own = one(tmp_path, run={"config": "demo", "set": ["optimizer.lr=7e-4"]}, seeds=[0, 1])
    assert plain.identity == shared.identity == own.identity
    assert plain.folder == own.folder
    assert plain.identity != one(tmp_path, run={"config": "viclip_demo"}).identity
    faster = one(tmp_path, run={"config": "demo", "set": ["optimizer.lr=8e-4"]})
    assert plain.identity != faster.identity


def test_only_the_data_that_a_run_reads_are_in_its_identity(tmp_path: Path) -> None:
    run = {"config": "demo", "set": ["data.train={out}/pairs/train.jsonl"]}
    world = ["data", "world", "--out", "{out}/world"]
    pairs = ["data", "convert", "x", "{out}/world/a.json", "--out", "{out}/pairs/train.jsonl"]
    other = ["data", "world", "--out", "{out}/other"]
    before = one(tmp_path, run=run, prepare=[world, pairs])
    assert before.identity == one(tmp_path, run=run, prepare=[other, world, pairs]).identity
    # What the list is made of counts too.
    assert before.identity != one(tmp_path, run=run, prepare=[[*world, "seed=1"], pairs]).identity
    assert before.identity != one(tmp_path, run=run, prepare=[world]).identity


def test_the_version_of_the_world_is_in_an_identity(tmp_path: Path, monkeypatch) -> None:
    before = one(tmp_path, run={"config": "demo"}).identity
    monkeypatch.setattr("svilm_fast.train.campaigns.jobs.FORMAT", "svilm-world/2")
    assert one(tmp_path, run={"config": "demo"}).identity != before


def test_names_of_runs_before_are_not_in_an_identity(tmp_path: Path) -> None:
    def table(name: str) -> TableJob:
        runs = {name: {"config": "demo"}}
        runs["probe"] = {"after": name, "command": ["probe", "action", "--run", f"{{{name}}}"]}
        section = {"title": "T", "rows": {"A": name}, "columns": {"x": "X"}}
        content = {"title": "T", "seeds": [0], "runs": runs, "sections": {"one": section}}
        return table_jobs(ResultTable.model_validate(content), tmp_path, [0])["probe", 0]

    assert table("first").identity == table("second").identity
    assert table("first").folder.name.startswith("probe_action_seed_0_")
