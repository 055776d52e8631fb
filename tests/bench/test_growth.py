"""`svilm bench growth`: paths on one axis of FLOPs, what a path needs, and refused tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from svilm_fast.bench.growth.command import FLOPS, PathRun, check_runs, growth, path_of, summary
from svilm_fast.bench.growth.figure import TITLE, draw
from svilm_fast.core.errors import ConfigError
from svilm_fast.tasks.base import task_of
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.table_file import read_table
from svilm_fast.train.config.load import dump_config, load_config


def job(folder: Path, losses: dict[int, float], *overrides: str) -> TableJob:
    folder.mkdir()
    config = load_config("vidrop_demo", ["objectives.vidrop.target=pixels", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return TableJob(folder.name, 0, folder.name, None, folder, ())


def test_a_path_counts_the_flops_of_the_small_model_too(tmp_path: Path) -> None:
    narrow = ("video.width=64", "video.depth=2", "video.heads=2")
    small = job(tmp_path / "small", {5: 1.0, 10: 0.9}, *narrow)
    grown = job(tmp_path / "grown", {5: 0.8})
    path = path_of([small, grown])
    each = [
        task_of(load_config(str(one.folder / "config.yaml"))).flops().total / FLOPS
        for one in (small, grown)
    ]
    assert each[0] < each[1] / 3
    np.testing.assert_allclose(path[0].flops, [5 * each[0], 10 * each[0]])
    np.testing.assert_allclose(path[1].flops, [10 * each[0] + 5 * each[1]])


def test_one_lucky_record_decides_nothing(tmp_path: Path) -> None:
    steps = np.arange(1.0, 21.0)
    scratch = np.where(steps == 20, 0.1, 1 - 0.02 * steps)  # its last batch was easy
    grown = np.where(steps == 3, 0.1, 0.805 - 0.02 * steps)
    found = {
        "grown": [[PathRun(steps[:2], np.ones(2)), PathRun(2 + steps, grown)]],
        "from scratch": [[PathRun(steps, scratch)]],
    }
    goal = scratch[-5:].mean()
    (line,) = summary(found)
    assert f"the loss {goal:.4g} that training from scratch has after 20 TFLOP" in line
    first = next(n for n in range(5, 21) if grown[n - 5 : n].mean() <= goal)
    assert line.endswith(f"grown after {2 + first:g} TFLOP")
    worse = found | {"grown": [[PathRun(steps, np.ones(20))]]}
    assert summary(worse)[0].endswith("grown was not reached")
    picture = tmp_path / "figures" / "growth.png"
    draw(found, picture)
    draw(found, picture)  # over its own
    assert TITLE.encode() in picture.read_bytes()


def test_other_tables_and_other_files_are_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training called grown, scratch, small"):
        growth("vidrop_demo", out=tmp_path / "runs")
    name, table = read_table("vidrop_growth")
    check_runs(name, table)
    runs = table.runs | {"grown": table.runs["scratch"]}
    with pytest.raises(ConfigError, match="grown does not come after the run small"):
        check_runs(name, table.model_copy(update={"runs": runs}))
    foreign = tmp_path / "mine.png"
    foreign.write_bytes(b"a picture of somebody")
    with pytest.raises(ValueError, match="not an earlier result"):
        growth("vidrop_growth", out=tmp_path / "runs", figure=foreign)
    assert not (tmp_path / "runs").exists()
