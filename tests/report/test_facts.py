"""Which facts are taken from where."""

from __future__ import annotations

import numpy as np

from svilm_fast.report.facts import OF_THE_MODEL, OF_THE_TRAINING, run_facts, steady_median
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.schema import RunConfig


def series(**values: list[float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (np.arange(len(v)), np.array(v)) for name, v in values.items()}


def test_the_median_leaves_the_start_out() -> None:
    log = series(clips_per_second=[1, 1, 1, 50, 60, 52])
    assert steady_median(log, "clips_per_second") == 52
    assert steady_median(log, "nothing") is None


def test_facts_by_section() -> None:
    facts = run_facts(
        {"model": {"preset": "tiny"}, "training": {"steps": 10, "epochs": None}, "task": {"k": 3}},
        {"task.k": "shots", "task.unset": "nothing"},
        {"device": "cpu", "packages": {"torch": "2.13.0"}, "cuda": None},
        series(
            seconds_per_step=[0.5],
            model_tflops_per_second=[0.02],
            data_wait_share=[0.125],
            peak_memory_bytes=[2.0**31],
        ),
        parameters=1234567,
        extra={"Model": {"FLOPs": "1 G"}, "Own": {"control": True}},
    )
    assert facts["Model"] == {"preset": "tiny", "parameters": "1,234,567", "FLOPs": "1 G"}
    assert facts["Task"] == {"shots": "3"}
    assert facts["Training"] == {"steps": "10"}
    assert list(facts)[:3] == ["Model", "Task", "Training"]
    assert facts["Machine"] == {"device": "cpu", "torch": "2.13.0"}
    assert facts["Throughput"] == {
        "seconds per step": "0.5",
        "model TFLOP per second": "0.02",
        "model GFLOP per step": "10",
        "share of time waiting for data": "12.5%",
        "peak memory, GiB": "2",
    }
    assert facts["Own"] == {"control": "yes"}


def test_nothing_known_gives_no_tables() -> None:
    assert run_facts({}, {}, {}, {}) == {}


def test_every_named_setting_exists() -> None:
    config = RunConfig()
    facts = task_of(config).facts()
    assert facts["objectives.temporal.head"] == "temporal head"
    tree = config.model_dump()
    for key in (*facts, *(key for _, key, _ in (*OF_THE_MODEL, *OF_THE_TRAINING))):
        node = tree
        for part in key.split("."):
            assert part in node, key
            node = node[part]
