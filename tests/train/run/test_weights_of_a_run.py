"""Which weights a run is evaluated and reported with, and whose temporal prediction is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.report import page, probe
from svilm_fast.tasks.pretrain.retrieval import evaluate, evaluation_data
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.reporting import write_report
from svilm_fast.train.run.session import Start, train_as_rank

STEPS = 3


def test_evaluation_and_report_take_the_average_unless_told_otherwise(
    configure, ranks, read_records, monkeypatch
) -> None:
    config = configure(
        "ema.decay=0.6",
        "objectives.temporal.head=rnn",
        f"training.steps={STEPS}",
        "optimizer.lr=0.01",
        "deepspeed.zero_stage=2",
    )
    train_as_rank(config, Start(), ranks)
    run_dir = Path(config.run.dir)
    saved = {
        kind: load_file(run_dir / "portable" / name)
        for kind, name in ((Weights.RAW, "model.safetensors"), (Weights.EMA, "ema.safetensors"))
    }
    assert json.loads((run_dir / "portable" / "state.json").read_text())["ema"]["updates"] == STEPS
    runs = {weights: load_run(run_dir, weights=weights) for weights in (None, *Weights)}
    assert [run.weights for run in runs.values()] == [Weights.EMA, Weights.RAW, Weights.EMA]
    assert load_run(run_dir, overrides=["ema.evaluate=false"]).weights is Weights.RAW
    for weights, run in runs.items():
        found = dict(run.model.named_parameters())
        wanted = saved[weights or Weights.EMA]
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    dataset = evaluation_data(config, "val", runs[None].tokenizer)
    result = evaluate(runs[None].model.encoder, dataset, config, ranks.device, resamples=0)
    metrics = result.metrics()
    (during,) = [r for r in read_records(run_dir / "metrics.jsonl") if set(metrics) <= set(r)]
    assert {name: during[name] for name in metrics} == pytest.approx(metrics)

    told: dict[str, object] = {}
    probed, written = probe.probe_clips, page.write_page
    monkeypatch.setattr(
        probe, "probe_clips", lambda *args, **given: told.update(given) or probed(*args, **given)
    )
    monkeypatch.setattr(
        page, "write_page", lambda *args, **given: told.update(given) or written(*args, **given)
    )
    write_report(runs[None], "val", ranks.device, clips=2)
    assert told["extra_facts"] == {"Weights": {"read": "ema", "step": STEPS}}
    assert told["temporal_head"] is runs[None].model.objectives.temporal.head


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_starts_from_the_average_of_another(
    configure, ranks, precision: str, tmp_path: Path
) -> None:
    short = ("training.steps=2", "evaluation.at_end=false", "optimizer.lr=0.01")
    train_as_rank(configure(*short, "ema.decay=0.6", run="first"), Start(), ranks)
    # A rate of almost nothing leaves the second run where it started.
    still = (*short, "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    second = configure(*still, f"training.precision={precision}", run="second")
    source = tmp_path / "first" / "portable"
    train_as_rank(second, Start(weights_from=source, average=True), ranks)
    wanted = load_file(source / "ema.safetensors")
    found = load_file(tmp_path / "second" / "portable" / "model.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    with pytest.raises(UserError, match="--weights ema needs --weights-from"):
        Start(init_from=source, average=True)


def test_an_average_that_was_never_kept_is_refused(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    assert load_run(config.run.dir).weights is Weights.RAW
    with pytest.raises(CheckpointError, match="holds no average of the weights"):
        load_run(config.run.dir, weights=Weights.EMA)
