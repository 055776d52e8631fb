"""Running jobs: order, failures, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.train.campaigns import execute
from svilm_fast.train.campaigns.execute import collect, run_jobs
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.store import ResultStore


def job(out: Path, name: str, before: TableJob | None = None, *, fails: bool = False) -> TableJob:
    """A job whose command only prints the version, with the files of a finished run."""
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "qa/accuracy": 50.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "env.json").write_text('{"device": "cpu"}')
    arguments = ("no-such-command",) if fails else ("--version",)
    return TableJob(name, 0, f"{name:_<64}", before, folder, arguments)


def test_results_are_kept_and_not_repeated(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = job(tmp_path, "first")
    second = job(tmp_path, "second", first)
    order: list[str] = []
    assert run_jobs([second, first], store, 2, done=lambda each: order.append(each.name)) == []
    assert order == ["first", "second"]
    kept = store.find(second)
    assert kept is not None
    measured = {"loss": 1.0, "qa/accuracy": 50.0}
    assert kept["metrics"] == measured | {"loss_last_tenth": 1.0, "training_seconds": 0.0}
    assert kept["steps"] == 2
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    assert run_jobs([first, second], store, 1) == []
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = job(tmp_path, "first", fails=True)
    second = job(tmp_path, "second", first)
    other = job(tmp_path, "other")
    failures = run_jobs([first, second, other], store, 1)
    assert [failure.job for failure in failures] == [first]
    assert failures[0].reason == "exit code 2"
    assert "no-such-command" in failures[0].log.read_text()
    assert store.find(other) is not None
    assert store.find(second) is None


def test_a_result_that_cannot_be_collected_stops_only_what_needs_it(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first, other = job(tmp_path, "first"), job(tmp_path, "other")
    second = job(tmp_path, "second", first)
    (first.folder / "env.json").write_text("{")
    failures = run_jobs([first, second, other], store, 1)
    assert [failure.job for failure in failures] == [first]
    assert failures[0].reason.startswith("no result: ")
    assert "Expecting" in failures[0].reason
    assert store.find(other) is not None
    assert store.find(second) is None


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"processor_seconds_per_step": 3.0, "loss": 1.0}, (2 * 2.0 + 3.0, 1.0)),
        ({"loss": 1.0}, (None, 1.0)),  # continued by code that does not measure it
        ({"processor_seconds_per_step": 3.0, "loss": None}, (7.0, None)),  # not finite
    ],
)
def test_what_is_summed_over_steps(
    tmp_path: Path, second: dict[str, Any], expected: tuple[float | None, float | None]
) -> None:
    run = job(tmp_path, "run")
    first = {"step": 2, "seconds_per_step": 1.0, "processor_seconds_per_step": 2.0, "loss": 4.0}
    lines = [first, {"step": 3, "seconds_per_step": 5.0} | second, {"step": 3, "qa/accuracy": 50.0}]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = collect(run, None)["metrics"]
    assert metrics["training_seconds"] == 7.0
    found = metrics.get("training_processor_seconds"), metrics.get("loss_last_tenth")
    assert found == expected


def test_a_result_holds_the_commit_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["first", "second"])
    monkeypatch.setattr(execute, "package_commit", lambda: next(commits))
    store, jobs = ResultStore(tmp_path), [job(tmp_path, "one"), job(tmp_path, "two")]
    run_jobs(jobs, store, 1)
    kept = [store.find(each) for each in jobs]
    assert [each["commit"] for each in kept if each] == ["first", "second"]


def test_a_result_of_other_inputs_does_not_count(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = job(tmp_path, "first")
    run_jobs([first], store, 1)
    kept = json.loads(store.path(first).read_bytes())
    store.path(first).write_text(json.dumps(kept | {"identity": "another"}))
    assert store.find(first) is None


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = job(tmp_path, "first")
    path = store.path(first)
    path.parent.mkdir()
    path.write_text('{"identity"')
    with pytest.raises(UserError, match="is damaged"):
        store.find(first)


def test_a_shared_result_is_not_run_again(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first = job(tmp_path / "a", "first")
    second = job(tmp_path / "a", "second", first)
    assert run_jobs([first, second], ResultStore(tmp_path / "a", shared), 1) == []
    elsewhere = ResultStore(tmp_path / "b", shared)
    first = job(tmp_path / "b", "first")
    second = job(tmp_path / "b", "second", first)
    assert run_jobs([first, second], elsewhere, 1) == []
    assert not (tmp_path / "b" / "logs").exists()
    assert elsewhere.find(second) == ResultStore(tmp_path / "a").made(second)


def test_the_shared_result_wins_on_every_machine(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    run_jobs([job(tmp_path / "a", "first")], ResultStore(tmp_path / "a", shared), 1)
    first = job(tmp_path / "b", "first")
    (first.folder / "metrics.jsonl").write_text('{"step": 2, "loss": 5.0}\n')
    store = ResultStore(tmp_path / "b", shared)
    assert run_jobs([first, job(tmp_path / "b", "second", first)], store, 1) == []
    found, made = store.find(first), store.made(first)
    assert found is not None
    assert made is not None
    assert (found["metrics"]["loss"], made["metrics"]["loss"]) == (1.0, 5.0)


def test_a_result_that_another_campaign_shares_meanwhile_is_taken(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, other = job(tmp_path / "b", "first"), job(tmp_path / "b", "other")

    def share_other(_: TableJob) -> None:
        if not (shared / "other.json").exists():
            run_jobs([job(tmp_path / "a", "other")], ResultStore(tmp_path / "a", shared), 1)

    store = ResultStore(tmp_path / "b", shared)
    assert run_jobs([first, other], store, 1, done=share_other) == []
    assert [path.name for path in (tmp_path / "b" / "logs").iterdir()] == ["first.log"]
    assert store.made(other) is None
    assert store.find(other) is not None


def test_a_result_without_its_folder_was_made_elsewhere(tmp_path: Path) -> None:
    first = job(tmp_path, "first")
    store = ResultStore(tmp_path)
    run_jobs([first], store, 1)
    first.folder.rename(tmp_path / "gone")
    assert store.made(first) is None
    assert store.find(first) is not None


@pytest.mark.parametrize("content", ['{"identity"', "[]"])
def test_a_damaged_shared_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "first.json").write_text(content)
    first = job(tmp_path, "first")
    with pytest.raises(UserError, match=r"first\.json is .*remove it"):
        ResultStore(tmp_path, tmp_path / "shared").find(first)


def test_results_of_before_are_shared_too(tmp_path: Path) -> None:
    first = job(tmp_path, "first")
    run_jobs([first], ResultStore(tmp_path), 1)
    shared = tmp_path / "shared"
    assert run_jobs([first], ResultStore(tmp_path, shared), 1) == []
    found = json.loads((shared / "first.json").read_bytes())
    assert found == ResultStore(tmp_path).made(first)


def test_a_run_elsewhere_is_made_again_for_one_that_follows(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    run_jobs([job(tmp_path / "a", "first")], ResultStore(tmp_path / "a", shared), 1)
    first = job(tmp_path / "b", "first")
    second = job(tmp_path / "b", "second", first)
    other = job(tmp_path / "b", "other")
    store = ResultStore(tmp_path / "b", shared)
    assert store.needed([first, other]) == {other}
    order: list[str] = []
    jobs = [first, second, other]
    assert run_jobs(jobs, store, 1, done=lambda each: order.append(each.name)) == []
    assert order == ["first", "second", "other"]
    assert store.made(first) is not None
    assert {path.stem for path in shared.iterdir()} == {"first", "second", "other"}
