"""Predicted GPU hours of a table: steps of epochs, GPUs of a small batch, what is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.train.campaigns.cost import checked_config, gpu_hours, steps_of
from svilm_fast.train.campaigns.jobs import TableJob, table_jobs
from svilm_fast.train.campaigns.table import ResultTable
from svilm_fast.train.campaigns.table_file import read_table
from svilm_fast.train.config.recipes import FULL_TABLES
from svilm_fast.train.config.schema import RunConfig

EPOCHS = ["training.steps=null", "training.epochs=3"]
RUNS: dict[str, Any] = {
    "steps": {"config": "svilm_base", "set": ["training.epochs=null", "training.steps=30"]},
    "epochs": {"config": "svilm_base", "clips": 10 * 1024 + 7, "set": EPOCHS},
    "twice": {"config": "svilm_base", "clips": 20 * 1024, "set": [*EPOCHS, "data.train=twice"]},
    "unknown": {"config": "svilm_base", "set": [*EPOCHS, "data.train=other"]},
    "head": {
        "config": "tasks/action_ucf101",
        "task": "action",
        "clips": 1000,
        "set": ["data.train=data/there-is-no-such-list.jsonl"],
    },
}


def opened(gpus: int = 8) -> tuple[ResultTable, dict[str, TableJob]]:
    rows = {name: name for name in RUNS}
    section = {"title": "T", "rows": rows, "columns": {"loss": "Loss"}}
    content = {"title": "T", "seeds": [0], "gpus": gpus, "runs": RUNS, "sections": {"a": section}}
    table = ResultTable.model_validate(content)
    return table, {name: job for (name, _), job in table_jobs(table, Path("x"), [0]).items()}


def hours(name: str, gpus: int = 8) -> float | None:
    table, jobs = opened(gpus)
    config = checked_config(table, jobs[name])
    assert config is not None
    return gpu_hours(table, jobs[name], config)


def test_epochs_count_whole_batches() -> None:
    """10,247 clips make 10 batches of 1,024, three times."""
    table, jobs = opened()
    config = checked_config(table, jobs["epochs"])
    assert config is not None
    assert steps_of(table, jobs["epochs"], config) == 30
    assert hours("epochs") == hours("steps")
    assert hours("twice") == pytest.approx(2 * (hours("epochs") or 0))


def test_compute_costs_the_same_gpu_hours_on_more_gpus() -> None:
    """Collectives add to it."""
    few, many = hours("steps", 8), hours("steps", 64)
    assert few is not None
    assert many is not None
    assert few < many < 1.5 * few


def test_epochs_without_clips_are_an_error() -> None:
    with pytest.raises(UserError, match=r"runs\.unknown: set training\.steps, or clips"):
        hours("unknown")


def test_a_head_of_missing_data_is_unknown() -> None:
    assert hours("head") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", sorted(FULL_TABLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_full_tables_have_a_cost(path: Path) -> None:
    _, table = read_table(str(path))
    found = {}
    for job in table_jobs(table, Path("x"), [0]).values():
        config = checked_config(table, job)
        if config is not None:
            found[job.name] = gpu_hours(table, job, config)
    assert found
    known = {name: hours for name, hours in found.items() if hours is not None}
    assert sum(known.values()) > 1
    assert {name for name, hours in known.items() if not 0 < hours < 2000} == set()
    # Only heads whose size follows from the data are unknown.
    unknown = found.keys() - known
    assert all("qa" in name or "action" in name or "_tuned" in name for name in unknown)


def test_a_fine_tuning_is_priced_with_the_model_that_it_starts_from() -> None:
    """The recipe of retrieval has four group tokens of a large tower; the small run has none."""
    runs: dict[str, Any] = {
        "small": {"config": "viclip_demo"},
        "halfway": {"after": "small", "command": ["ckpt", "interpolate", "{after}", "{after}"]},
        "tuned": {
            "config": "tasks/retrieval_msrvtt",
            "task": "retrieval",
            "weights_from": "halfway",
            "clips": 9000,
        },
    }
    section = {"title": "T", "rows": {"A": "tuned"}, "columns": {"loss": "Loss"}}
    content = {"title": "T", "seeds": [0], "gpus": 8, "runs": runs, "sections": {"a": section}}
    table = ResultTable.model_validate(content)
    jobs = table_jobs(table, Path("x"), [0])
    small, tuned = (checked_config(table, jobs[name, 0]) for name in ("small", "tuned"))
    assert small is not None
    assert tuned is not None
    assert tuned.video.width == small.video.width != RunConfig().video.width
    assert tuned.text == small.text
    assert tuned.data.train != small.data.train
