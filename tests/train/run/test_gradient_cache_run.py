"""Whole runs with the gradient cache: resume bit for bit, and what a run reports."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.run.session import Start, train_as_rank


@pytest.fixture
def told(read_records):
    def read(config: RunConfig) -> tuple[list[dict], dict[str, torch.Tensor]]:
        folder = Path(config.run.dir)
        records = [found for found in read_records(folder / "metrics.jsonl") if "loss" in found]
        return records, load_file(folder / "portable" / "model.safetensors")

    return read


@pytest.mark.parametrize(
    "stage, reduction",
    [
        (2, "boundary"),
        pytest.param(1, "coalesce", marks=pytest.mark.slow),
        pytest.param(3, "boundary", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_with_the_cache_resumes_bit_for_bit(
    configure, ranks, told, stage: int, reduction: str
) -> None:
    overrides = (
        f"deepspeed.zero_stage={stage}",
        f"distributed.gradient_reduction={reduction}",
        "training.micro_batch=3",
        "training.steps=4",
        "evaluation.at_end=false",
    )
    whole = configure(*overrides, run="whole")
    train_as_rank(whole, Start(), ranks)
    broken = configure(*overrides, "training.stop_after_steps=2", run="broken")
    assert train_as_rank(broken, Start(), ranks).step == 2
    resumed = configure(*overrides, run="broken")
    assert train_as_rank(resumed, Start(resume=True), ranks).step == 4
    records, weights = told(whole)
    again, reached = told(resumed)
    assert [record["loss"] for record in again] == [record["loss"] for record in records]
    for name, value in weights.items():
        assert torch.equal(value, reached[name]), name


def test_the_micro_batch_changes_memory_and_not_the_run(configure, ranks, told) -> None:
    overrides = ("training.steps=3", "evaluation.at_end=false", "optimizer.name=sgd")
    overrides += ("optimizer.lr=0.001",)
    plain = configure(*overrides, run="plain")
    cached = configure(*overrides, "training.micro_batch=3", run="cached")
    for config in (plain, cached):
        train_as_rank(config, Start(), ranks)
    records, weights = told(plain)
    others, reached = told(cached)
    learned = ("loss", "accuracy", "scale", "beta", "empty", "gradient_norm")
    for record, other in zip(records, others, strict=True):
        assert record.keys() == other.keys()
        for name in (name for name in record if name.startswith(learned)):
            assert math.isclose(record[name], other[name], rel_tol=1e-4, abs_tol=1e-6), name
    for name, value in weights.items():
        torch.testing.assert_close(reached[name], value, rtol=1e-4, atol=1e-5, msg=name)
