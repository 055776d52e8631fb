"""The study of the gate: what it puts in, and how it counts what was found."""

import json
from itertools import count

import pytest
import torch

from svilm_fast.bench.ab import study, study_report, study_suite
from svilm_fast.bench.suites.benchmark import WrongResult

MADE = {"cpu": "made up", "cores": 2, "python": "3.11", "torch": "2.13.0", "date": "a day"}


def a_run(kind, number, comparisons):
    """A line of the study: (units, outcome) of each comparison."""
    rows = [
        {
            "id": f"id{place}",
            "units": units,
            "outcome": outcome,
            "ratio": 1 + units / 100,
            "interval": [1 + units / 100 - 0.005, 1 + units / 100 + 0.005],
            "p_slower": 0.0002 if outcome == "REGRESSION" else 0.5,
            "restart_ratios": [1 + (units + part) / 100 for part in (-0.5, -0.2, 0.2, 0.5) * 4],
        }
        for place, (units, outcome) in enumerate(comparisons)
    ]
    rule = {"confidence": 0.95, "threshold": 0.01}
    return MADE | {
        "kind": kind,
        "run": number,
        "comparisons": rows,
        "controls": [{"outcome": "OK"}],
        "outcome": "OK" if kind == "equal" else "REGRESSION",
        "seconds": 1.0,
        "plan": {"restarts": 12},
        "rule": rule,
    }


def test_every_kind_of_work_does_its_units_and_more_when_the_library_says_so(monkeypatch, tmp_path):
    counted = []
    monkeypatch.setitem(study_suite._KINDS, "json", lambda: lambda: counted.append(1))
    monkeypatch.setattr(study_suite.svilm_fast, "__file__", str(tmp_path / "__init__.py"))
    device = torch.device("cpu")
    [(id, plain)] = study_suite.benchmarks(None, device, "*json*").items()
    plain.prepare(device).call()
    assert len(counted) == study_suite.UNITS == 100
    (tmp_path / study_suite.EXTRA_FILE).write_text(json.dumps({id: 5}))
    study_suite.benchmarks(None, device, "*json*")[id].prepare(device).call()
    assert len(counted) == 100 + 105


def test_every_unit_is_proven_to_repeat():
    device = torch.device("cpu")
    for benchmark in study_suite.benchmarks(None, device).values():
        assert benchmark.prepare(device).verify() is None


def test_a_unit_that_changes_is_a_wrong_result(monkeypatch):
    monkeypatch.setitem(study_suite._KINDS, "json", lambda: count().__next__)
    device = torch.device("cpu")
    [benchmark] = study_suite.benchmarks(None, device, "*json*").values()
    with pytest.raises(WrongResult, match="json"):
        benchmark.prepare(device).verify()


def test_slow_runs_give_each_benchmark_each_level_in_turn():
    assert set(study.extra_units(4, "equal").values()) == {0}
    runs = [study.extra_units(run, "slow") for run in range(3)]
    assert all({run[id] for run in runs} == {0, 3, 5} for id in runs[0])
    assert len(runs[0]) == 20


def test_exact_intervals_of_rates():
    assert study_report.exact_interval(0, 300) == (0.0, pytest.approx(0.01222, abs=1e-5))
    low, high = study_report.exact_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))
    assert study_report.exact_interval(5, 5)[1] == 1.0


def test_rates_are_counted_by_what_was_put_in(tmp_path):
    equal = [a_run("equal", run, [(0, "OK")] * 20) for run in range(14)]
    slow = [
        a_run("slow", run, [(0, "OK")] * 6 + [(3, "REGRESSION")] * 7 + [(5, "REGRESSION")] * 7)
        for run in range(4)
    ]
    path = tmp_path / "study.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in equal + slow))
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- study -->\nearlier\n<!-- end of study -->\nafter\n")
    assert study.main(["report", "--out", str(path), "--page", str(page)]) == 0
    figures = json.loads(path.with_suffix(".json").read_text())
    assert figures["groups"]["0 %"]["comparisons"] == 304
    assert figures["groups"]["0 %"]["slower"] == 0
    assert figures["groups"]["3 %"]["alone"] == 28
    assert figures["groups"]["3 %"]["alone_in_whole_run"] == 28
    assert figures["groups"]["0 %"]["alone_in_whole_run"] == 0
    assert figures["groups"]["5 %"]["slower_rate"] == 1.0
    assert figures["runs"] == {"equal": {"OK": 14}, "slow": {"REGRESSION": 4}}
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "| 5 % | 28 | 28 (100.0%) |" in page.read_text()
    assert "(study.png)" in page.read_text()
    assert page.read_text().startswith("Before\n<!-- study -->\na day")
    assert page.read_text().endswith("<!-- end of study -->\nafter\n")
    assert "earlier" not in page.read_text()


def test_a_p_value_that_is_resolved_decides_in_a_larger_run_too():
    runs = [a_run("slow", 0, [(3, "REGRESSION"), (3, "REGRESSION")])]
    runs[0]["comparisons"][1]["p_slower"] = 0.001
    group = study_report.summary(runs)["groups"]["3 %"]
    assert (group["alone"], group["alone_in_whole_run"]) == (2, 1)


def test_a_comparison_without_a_figure_is_counted_and_not_found():
    runs = [a_run("slow", 0, [(0, "OK"), (3, "REGRESSION"), (3, "FAILED")])]
    runs[0]["comparisons"][2] |= {"ratio": None, "interval": None, "p_slower": None}
    group = study_report.summary(runs)["groups"]["3 %"]
    assert (group["comparisons"], group["without_figure"], group["alone"]) == (2, 1, 1)


def test_found_only_with_the_help_of_others_is_not_reached():
    """Holm's correction is milder where more is slower; the bars are for a lone slowdown."""
    comparisons = [(0, "OK")] * 10 + [(3, "REGRESSION")] * 5 + [(5, "REGRESSION")] * 5
    runs = [a_run("slow", run, comparisons) for run in range(30)]
    assert study_report.reached(study_report.summary(runs))
    for run in runs:
        for one in run["comparisons"][10:15]:
            one["p_slower"] = 0.002
    assert not study_report.reached(study_report.summary(runs))


@pytest.mark.parametrize(
    "comparisons, runs",
    [
        ([(0, "OK")] * 10 + [(3, "REGRESSION")] * 5 + [(5, "REGRESSION")] * 5, 29),
        ([(0, "REGRESSION")] + [(0, "OK")] * 9 + [(3, "REGRESSION"), (5, "REGRESSION")], 40),
        ([(0, "OK")] * 10 + [(3, "OK"), (3, "REGRESSION"), (5, "REGRESSION")], 40),
        ([(0, "OK")] * 10 + [(3, "REGRESSION"), (5, "NOISY"), (5, "REGRESSION")], 40),
    ],
    ids=["too few", "false alarms", "misses 3 %", "misses 5 %"],
)
def test_what_is_not_reached_is_said(comparisons, runs):
    figures = study_report.summary([a_run("slow", run, comparisons) for run in range(runs)])
    assert not study_report.reached(figures)
