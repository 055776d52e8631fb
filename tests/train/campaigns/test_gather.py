"""A table's JSON from the results of its runs: joined rows, queries, intervals, chains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from svilm_fast.cli import main
from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.core.outcomes import Outcomes, shares_of, shares_text
from svilm_fast.train.campaigns.jobs import TableJob, table_jobs
from svilm_fast.train.campaigns.results import differences, gather, interval, rendered
from svilm_fast.train.campaigns.store import ResultStore
from svilm_fast.train.campaigns.table import ResultTable

SEEDS = [0, 1, 2, 3, 4, 5]
CONTENT: dict[str, Any] = {
    "title": "Two rows",
    "seeds": SEEDS,
    "set": ["logging.every_steps=1", "training.steps=5"],
    "runs": {
        "clips": {"seed": 0, "command": ["data", "compress"], "metrics": "{dir}/report.json"},
        "own": {"config": "demo", "after": "clips", "set": ["training.steps=7"]},
        "own_probe": {"after": "own", "command": ["probe"], "metrics": "{after}/probe.json"},
        "plain": {"config": "demo"},
    },
    "sections": {
        "one": {
            "title": "One",
            "rows": {"Own": ["own", "own_probe"], "Plain": "plain"},
            "columns": {"retrieval/t2v_R@1": "R@1", "loss": "Loss"},
            "compare": "Plain",
        },
        "two": {
            "title": "Two",
            "rows": {"Own": "own_probe"},
            "columns": {"top1": "Top-1", "factor": "Factor"},
        },
    },
}
VIDEOS = ["a", "a", "b", "c"]


def keep(store: ResultStore, job: TableJob, metrics: dict[str, float], *outcomes: Outcomes) -> None:
    content = {
        "identity": job.identity,
        "steps": 7,
        "metrics": metrics,
        "outcomes": [each.to_json() for each in outcomes],
        "environment": {},
    }
    if job.name == "plain":
        content["commit"] = "0123456789ab"
    store.write(job, content)


def made(
    out: Path, videos_of_plain: Sequence[str] = VIDEOS, *, own_queries: bool = True
) -> dict[str, Any]:
    table = ResultTable.model_validate(CONTENT)
    jobs = table_jobs(table, out, SEEDS)
    store, metric = ResultStore(out), "retrieval/t2v_R@1"
    for seed in SEEDS:
        own, plain = np.array([1, 1, 0.5, seed % 2]), np.array([0, 0, 0, 1.0])
        keep(store, jobs["clips", seed], {"factor": 4.0})
        keep(
            store,
            jobs["own", seed],
            {metric: 100 * own.mean(), "loss": 2.0 + seed},
            *([Outcomes(VIDEOS, {metric: own})] if own_queries else []),
        )
        other = Outcomes(VIDEOS, {metric: np.zeros(4)})
        keep(store, jobs["own_probe", seed], {"top1": 60.0, "loss": 9.0, metric: 0.0}, other)
        keep(
            store,
            jobs["plain", seed],
            {metric: 100 * plain.mean(), "loss": 1.0},
            Outcomes(videos_of_plain, {metric: plain}),
        )
    return gather("two_rows", table, jobs, store, SEEDS)


def test_rows_join_runs_and_the_first_one_wins(tmp_path: Path) -> None:
    result = made(tmp_path)
    own = result["sections"]["one"]["rows"]["Own"]
    assert own["values"]["loss"] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert result["steps"] == {"own": 7, "plain": 7, "own_probe": 7}


def test_the_table_names_its_code_and_its_command(tmp_path: Path) -> None:
    result = made(tmp_path)
    assert result["commits"] == ["0123456789ab", "unrecorded"]
    assert result["command"] == "svilm ablate two_rows"


def test_a_table_is_collected_without_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = made(tmp_path / "out")
    table, target = tmp_path / "two_rows.yaml", tmp_path / "two_rows.json"
    table.write_text(yaml.safe_dump(CONTENT))
    shared = ["--results", str(tmp_path / "out" / "results"), "--out", str(tmp_path / "none")]
    command = ["ablate", str(table), "--collect", *shared, "--json", str(target)]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(command)
    result = json.loads(target.read_bytes())
    assert result["sections"] == json.loads(json.dumps(expected))["sections"]
    target.unlink()
    plain = table_jobs(ResultTable.model_validate(CONTENT), tmp_path / "out", SEEDS)["plain", 3]
    ResultStore(tmp_path / "out").path(plain).unlink()
    capfd.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        main(command)
    message = " ".join(capfd.readouterr().err.split())
    assert "no result of 1 of 19 runs in" in message
    assert "first plain_seed_3 (a result of other settings" in message
    assert not target.exists()
    assert not (tmp_path / "none").exists()


def test_a_collected_table_is_written_to_the_campaign_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "out")
    table, foreign = tmp_path / "two_rows.yaml", tmp_path / "foreign"
    table.write_text(yaml.safe_dump(CONTENT))
    command = ["ablate", str(table), "--collect", "--results", str(tmp_path / "out" / "results")]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--out", str(tmp_path / "new")])
    assert (tmp_path / "new" / "two_rows.json").is_file()
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*command, "--out", str(foreign)])
    assert "content that is not of `svilm ablate`" in capfd.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("option", [["--dry-run"], ["--jobs", "2"], ["--gpus", "0"]])
def test_collect_takes_no_option_of_a_run(
    option: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["ablate", "demo", "--collect", *option])
    assert "--collect runs nothing" in capfd.readouterr().err


def test_a_row_has_the_metrics_of_the_runs_before(tmp_path: Path) -> None:
    values = made(tmp_path)["sections"]["two"]["rows"]["Own"]["values"]
    assert values == {"top1": [60.0] * 6, "factor": [4.0] * 6}


def test_a_training_does_not_take_the_metrics_of_an_earlier_one(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "title": "Fine-tuned",
        "seeds": [0],
        "runs": {
            "first": {"config": "demo"},
            "tuned": {"config": "demo", "task": "qa", "weights_from": "first"},
        },
        "sections": {
            "one": {"title": "One", "rows": {"Tuned": "tuned"}, "columns": {"qa/accuracy": "QA"}}
        },
    }
    table = ResultTable.model_validate(content)
    jobs, store = table_jobs(table, tmp_path, [0]), ResultStore(tmp_path)
    keep(store, jobs["first", 0], {"qa/accuracy": 10.0})
    keep(store, jobs["tuned", 0], {"loss": 1.0})
    with pytest.raises(UserError, match="tuned_seed_0 has no metric 'qa/accuracy'"):
        gather("tuned", table, jobs, store, [0])
    keep(store, jobs["tuned", 0], {"qa/accuracy": 20.0})
    store.write(jobs["first", 0], {"identity": jobs["first", 0].identity, "commit": "abc"})
    result = gather("tuned", table, jobs, store, [0])
    assert result["sections"]["one"]["rows"]["Tuned"]["values"] == {"qa/accuracy": [20.0]}
    assert result["commits"] == ["abc", "unrecorded"]  # of the weights it starts from, too


def test_queries_are_kept_and_paired(tmp_path: Path) -> None:
    section = made(tmp_path)["sections"]["one"]
    assert section["queries"]["retrieval/t2v_R@1"]["clusters"] == "0 0 1 2"
    assert section["rows"]["Own"]["shares"]["retrieval/t2v_R@1"][1] == "1 1 0.5 1"
    found = interval(section, "Own", "retrieval/t2v_R@1")
    change = differences(section, "Own", "retrieval/t2v_R@1")
    assert found is not None
    assert change is not None
    assert found.queries
    assert found.low < np.mean(change) < found.high
    alone = interval(section, "Own", "loss")
    assert alone is not None
    assert not alone.queries
    assert interval(section, "Plain", "loss") is None
    assert "; +3.50 [" in rendered(section, "Own", "loss")


def test_other_queries_are_not_paired(tmp_path: Path) -> None:
    section = made(tmp_path, ["a", "b", "b", "c"])["sections"]["one"]
    assert section["queries"] == {}
    assert section["rows"]["Own"]["shares"] == {}
    found = interval(section, "Own", "retrieval/t2v_R@1")
    assert found is not None
    assert not found.queries


def test_queries_of_another_run_are_not_taken_for_those_of_a_metric(tmp_path: Path) -> None:
    """The joined probe measured the metric as well, on queries of its own."""
    section = made(tmp_path, own_queries=False)["sections"]["one"]
    own = section["rows"]["Own"]
    assert own["values"]["retrieval/t2v_R@1"][0] == 62.5
    assert own["shares"] == {}
    found = interval(section, "Own", "retrieval/t2v_R@1")
    assert found is not None
    assert not found.queries


def test_shared_settings_come_first(tmp_path: Path) -> None:
    jobs = table_jobs(ResultTable.model_validate(CONTENT), tmp_path, [0])
    assert [text for text in jobs["own", 0].arguments if text.startswith("training.steps")] == [
        "training.steps=5",
        "training.steps=7",
    ]


def test_a_section_keeps_the_runs_that_it_needs() -> None:
    table = ResultTable.model_validate(CONTENT)
    assert set(table.only(["two"]).runs) == {"clips", "own", "own_probe"}
    with pytest.raises(ConfigError, match="--section three"):
        table.only(["three"])


def test_shares_as_text() -> None:
    text = shares_text(np.array([0, 1, 1 / 3, 0.5]))
    assert text == "0 1 0.3333 0.5"
    assert shares_of(text).tolist() == [0, 1, 0.3333, 0.5]
