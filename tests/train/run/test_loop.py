"""The loop: length, records, evaluation, checkpoints, signals, bad steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from svilm_fast.core.errors import NonFiniteError
from svilm_fast.train.checkpoint.store import committed_tags, load_checkpoint
from svilm_fast.train.ranks.signals import PendingSignal, deferred_signals
from svilm_fast.train.run.loop import Outcome
from tests.train.run.conftest import TinyBatch, TinyLoader


def test_records_are_means_over_their_steps(
    make_loop, tmp_path: Path, capsys, read_records
) -> None:
    outcome = make_loop("checkpoint.every_steps=4").run()
    assert (outcome.step, outcome.signal) == (6, 0)
    records = read_records(tmp_path / "metrics.jsonl")
    losses = [record for record in records if "loss" in record]
    assert [record["step"] for record in losses] == [2, 4, 6]
    for record in losses:
        assert record["loss"] == pytest.approx(record["loss_fit"])
        assert record["clips_per_second"] > 0
        assert 0 <= record["data_wait_share"] <= 1
        assert record["gradient_norm"] > 0
        assert record["skipped_steps"] == 0
        assert record["peak_memory_bytes"] > 1e7
        assert "utilisation" not in record
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step 2/6 | loss ") for line in lines) == 1
    assert any("util n/a" in line for line in lines)
    assert committed_tags(tmp_path / "checkpoints") == ["step_00000006", "step_00000004"]


def test_evaluation_runs_every_n_steps_and_at_the_end(
    make_loop, tmp_path: Path, read_records
) -> None:
    loop = make_loop("evaluation.every_steps=4")
    loop.run()
    loop.evaluate_at_end()
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "toy/score" in r] == [4, 6]


def test_a_signal_leaves_out_the_evaluation_and_a_resume_makes_it_up(
    make_loop, tmp_path: Path, read_records
) -> None:
    pending = PendingSignal()
    pending.number = signal.SIGUSR1
    stopped = make_loop("evaluation.every_steps=1", pending=pending)
    assert stopped.run() == Outcome(1, signal.SIGUSR1, finished=False)
    assert committed_tags(tmp_path / "checkpoints") == ["step_00000001"]
    steps = [r["step"] for r in read_records(tmp_path / "metrics.jsonl") if "loss" not in r]
    assert steps == []
    for _ in range(2):  # the second resume finds it in the log
        make_loop("evaluation.every_steps=1", start_step=1, steps=2).run()
        records = read_records(tmp_path / "metrics.jsonl")
        assert [r["step"] for r in records if "toy/score" in r] == [1]


def test_no_evaluation_at_the_end_when_switched_off(
    make_loop, tmp_path: Path, read_records
) -> None:
    loop = make_loop("evaluation.every_steps=3", "evaluation.at_end=false")
    loop.run()
    loop.evaluate_at_end()
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "toy/score" in r] == [3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_continues_bit_for_bit(
    make_loop, make_engine, batch_of, tmp_path: Path, number: int, read_records
) -> None:
    whole = make_loop()
    whole.run()
    wanted = [r["loss"] for r in read_records(tmp_path / "metrics.jsonl") if "loss" in r]
    shutil.rmtree(tmp_path / "checkpoints")

    class Interrupting(TinyLoader):
        def forever(self) -> Iterator[TinyBatch]:
            for place, batch in enumerate(super().forever()):
                if place == 3:
                    os.kill(os.getpid(), number)
                yield batch

    with deferred_signals() as pending:
        loop = make_loop(loader=Interrupting(batch_of), pending=pending)
        outcome = loop.run()
    assert (outcome.step, outcome.signal) == (4, number)
    engine = make_engine("logging.every_steps=2", "logging.tensorboard=false", seed=9)
    state = load_checkpoint(engine, tmp_path / "checkpoints")
    assert state is not None
    loader = TinyLoader(batch_of)
    loader.load_state_dict(state.data)
    make_loop(engine=engine, loader=loader, start_step=state.step).run()
    losses = [r["loss"] for r in read_records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert losses == wanted


def test_copies_of_a_signal_are_one_and_a_later_signal_acts_at_once() -> None:
    now = [100.0]
    with deferred_signals(lambda: now[0]) as pending:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 1.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert pending.number == signal.SIGINT
        now[0] += 10.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_limit_saves_inside_a_longer_schedule(make_loop, tmp_path: Path, read_records) -> None:
    outcome = make_loop("training.stop_after_steps=3", "schedule.warmup_steps=0").run()
    assert outcome.step == 3
    assert committed_tags(tmp_path / "checkpoints") == ["step_00000003"]
    last = read_records(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 3
    assert 0.1 * 0.02 < last["learning_rate"] < 0.02


def test_a_non_finite_step_ends_the_run_and_names_the_samples(make_loop, tmp_path: Path) -> None:
    loop = make_loop(poisoned=(2,))
    with pytest.raises(NonFiniteError, match=r"step 3 are not finite.*optimizer.lr"):
        loop.run()
    dumped = json.loads((tmp_path / "non_finite_step_3_rank_0.json").read_text())
    assert dumped["ids"] == [f"clip-2-{row}" for row in range(8)]
    assert all(torch.isfinite(value).all() for value in loop.engine.model.parameters())


def test_bad_steps_below_the_limit_are_skipped_and_counted(
    make_loop, tmp_path: Path, read_records
) -> None:
    outcome = make_loop("training.max_non_finite_steps=2", poisoned=(1, 3)).run()
    assert outcome.step == 6
    counts = [r["skipped_steps"] for r in read_records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert counts == [1, 1, 0]


def test_a_profile_window_is_written_as_a_chrome_trace(make_loop, tmp_path: Path) -> None:
    make_loop("training.profile.start_step=1", "training.profile.steps=2").run()
    trace = json.loads((tmp_path / "profile" / "trace_from_step_1.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in names


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch) -> None:
    known = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGUSR1 else known(n))
    before = known(signal.SIGUSR1)
    with deferred_signals():
        assert known(signal.SIGUSR1) == before
        assert known(signal.SIGTERM) != signal.SIG_DFL
