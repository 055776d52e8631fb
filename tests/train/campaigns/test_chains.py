"""Runs that start from weights under their own recipe, and commands whose file is their result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.train.campaigns.execute import collect
from svilm_fast.train.campaigns.jobs import table_jobs
from svilm_fast.train.campaigns.table import ResultTable
from svilm_fast.train.config.run_files import RunFiles

TABLE = ResultTable.model_validate(
    {
        "title": "Growth",
        "seeds": [0],
        "runs": {
            "small": {"config": "vidrop_demo"},
            "grow": {"after": "small", "command": ["ckpt", "grow", "{after}", "--out", "{dir}"]},
            "grown": {"config": "vidrop_demo", "start_from": "grow"},
            "probe": {
                "after": "grown",
                "command": ["probe", "action", "--run", "{after}"],
                "metrics": "{after}/evaluation/probe.json",
            },
        },
        "sections": {"one": {"title": "t", "rows": {"A": "probe"}, "columns": {"x/top1": "x"}}},
    }
)


def test_a_run_starts_from_the_weights_of_the_command_before(tmp_path: Path) -> None:
    jobs = table_jobs(TABLE, tmp_path, [0])
    folder = jobs["grow", 0].folder
    assert jobs["grow", 0].arguments == (
        "ckpt", "grow", str(jobs["small", 0].folder), "--out", str(folder),
    )  # fmt: skip
    arguments = jobs["grown", 0].arguments
    assert arguments[:3] == ("train", "--weights-from", str(folder / "portable"))
    assert "--auto-resume" in arguments


def test_a_command_leaves_the_numbers_of_its_file(tmp_path: Path) -> None:
    job = table_jobs(TABLE, tmp_path, [0])["probe", 0]
    assert job.before is not None
    files = RunFiles(job.before.folder)
    files.root.mkdir(parents=True)
    files.environment.write_text('{"torch": "2"}')
    files.metrics.write_text('{"step": 7, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"its metrics cannot be read from .*probe\.json"):
        collect(job, None)
    path = files.root / "evaluation" / "probe.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"x/top1": 41, "x/y": 1.5, "protocol": {"a": 1}, "flag": True}))
    found = collect(job, None)
    assert found["metrics"] == {"x/top1": 41.0, "x/y": 1.5}
    assert found["environment"] == {"torch": "2"}
    assert found["steps"] == 7
