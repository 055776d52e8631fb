"""The runner: correctness before the clock, failures as records, exit statuses, the file."""

import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.cli import app
from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run import command, runner
from svilm_fast.bench.run.record import SCHEMA, Record
from svilm_fast.bench.run.runner import (
    DeviceLost,
    kernel_metrics,
    metrics_of,
    result,
    run,
    run_one,
    run_together,
)
from svilm_fast.bench.run.table import table
from svilm_fast.bench.run.text import exit_code, failures, line, status_text
from svilm_fast.bench.suites import blocks
from svilm_fast.bench.suites.benchmark import Benchmark, CallCost, Prepared, benchmark_id
from svilm_fast.cli import main
from svilm_fast.kernels.launch import compiled_kernels, launch

CPU = torch.device("cpu")
CEILINGS = Ceilings(product_flops=1e9, copy_bytes=1e9)


class CompilationError(Exception):
    pass


def make(prepare, name="one", provider="reference"):
    return Benchmark(
        benchmark_id("ops", name, "case", "float32", "forward", provider), "ops", prepare
    )


def raising(failure):
    def prepare(device):
        raise failure

    return prepare


def good(device, calls=None):
    log = [] if calls is None else calls
    return Prepared(
        call=lambda: log.append("call"),
        verify=lambda: log.append("verify") or 0.25,
        cost=CallCost(flops=2.0, bytes=8.0),
        units={"pairs": 4.0},
        facts={"shape": [4]},
        explain=lambda seconds: {"double": 2 * seconds},
        close=lambda: log.append("close"),
    )


def test_correctness_comes_before_the_clock_and_the_call_is_closed():
    calls = []
    record = run_one(make(lambda device: good(device, calls)), CPU, CEILINGS, budget_s=0.0)
    assert calls[0] == "verify"
    assert calls[-1] == "close"
    assert calls.count("verify") == 1
    assert record.status == "ok"
    assert record.error == 0.25
    assert len(record.samples_ms) == len(record.order) == 5
    seconds = record.median_ms * 1e-3
    assert record.product_fraction == pytest.approx(2.0 / seconds / 1e9)
    assert record.copy_fraction == record.floor_fraction == pytest.approx(8.0 / seconds / 1e9)
    assert record.rates_per_s == {"pairs": pytest.approx(4.0 / seconds)}
    assert record.facts == {"shape": [4], "double": 2 * seconds}
    assert "pairs/s" in line(record)


def test_a_step_tells_what_it_executed_and_the_share_of_its_losses():
    def step(device):
        prepared = good(device)
        prepared.facts = {"executed_flops": 4.0}
        prepared.explain = lambda seconds: {"losses_share": 0.125}
        return prepared

    record = run_one(make(step), CPU, CEILINGS, budget_s=0.0)
    executed = 2 * record.product_fraction
    assert f"executed {executed:.1%} of the product rate" in line(record)
    assert "losses 12.5%" in line(record)


@pytest.mark.parametrize(
    "failure, status",
    [
        (Skipped("flash_attn is not installed"), "skipped: flash_attn is not installed"),
        (WrongResult("output: far off", 0.5), "wrong_result"),
        (torch.OutOfMemoryError("no memory"), "oom"),
        (CompilationError("line 3\nmore"), "compile_error"),
        (ValueError("two\nlines"), "failed: ValueError: two"),
    ],
)
def test_a_failure_is_a_record_and_no_number(failure, status):
    [record] = run([make(raising(failure))], CPU, CEILINGS, budget_s=0.0)
    assert record.status == status
    assert record.median_ms is None
    assert record.samples_ms == ()
    expected = ExitCode.MISSING if status.startswith("skipped") else ExitCode.FAILED
    assert exit_code([record]) is expected
    assert status in line(record)


def test_a_wrong_result_is_never_timed():
    calls = []

    def prepare(device):
        prepared = good(device, calls)
        prepared.verify = lambda: (_ for _ in ()).throw(WrongResult("wrong", 2.0))
        return prepared

    record = run_one(make(prepare), CPU, CEILINGS, budget_s=0.0)
    assert (record.status, record.error) == ("wrong_result", 2.0)
    assert calls == ["close"]


def test_what_fails_while_it_is_timed_is_closed_and_recorded():
    calls = []

    def prepare(device):
        prepared = good(device, calls)
        prepared.call = lambda: 1 / 0
        return prepared

    record = run_one(make(prepare), CPU, CEILINGS, budget_s=0.0)
    assert record.status.startswith("failed: ZeroDivisionError")
    assert calls == ["verify", "close"]


def test_only_a_peer_may_run_out_of_memory():
    prepare = raising(torch.OutOfMemoryError("no memory"))
    own, peer = run([make(prepare), make(prepare, provider="eager")], CPU, None, budget_s=0.0)
    assert failures([own, peer]) == [own]


def test_benchmarks_behind_the_deadline_are_records():
    records = list(run([make(good), make(good, "two")], CPU, None, budget_s=0.0, deadline_s=-1.0))
    assert [record.status for record in records] == [
        "failed: the deadline of the run had passed"
    ] * 2
    assert exit_code(records) is ExitCode.FAILED
    assert [record.position for record in records] == [0, 1]


def test_calls_measured_together_take_turns():
    turns = []

    def prepare(name):
        def build(device):
            prepared = good(device)
            prepared.call = lambda: turns.append(name)
            return prepared

        return build

    chosen = [make(prepare(name), name) for name in "abc"]
    wrong = make(raising(WrongResult("wrong", 1.0)), "wrong")
    records = run_together([*chosen, wrong], CPU, CEILINGS, budget_s=0.0)
    assert [record.status for record in records] == ["ok"] * 3 + ["wrong_result"]
    timed = turns[-15:]
    rounds = [timed[start : start + 3] for start in range(0, 15, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    for record in records[:3]:
        assert [timed[place] for place in record.order] == [record.name] * 5


def test_one_that_fails_in_a_round_does_not_take_the_others_along():
    closed = []

    def build(device):
        prepared = good(device, closed)
        turns = iter(range(5))
        prepared.call = lambda: next(turns)
        return prepared

    chosen = [make(good, "a"), make(build, "broken"), make(good, "b")]
    records = run_together(chosen, CPU, None, budget_s=0.0)
    assert [record.status.partition(":")[0] for record in records] == ["ok", "failed", "ok"]
    assert closed == ["verify", "close"]


def test_a_lost_device_ends_the_run_after_the_record_that_lost_it(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    chosen = [make(raising(RuntimeError("Triton Error")), "a"), make(good, "b")]
    found = run(chosen, torch.device("cuda"), None, budget_s=0)
    assert next(found).status == "failed: RuntimeError: Triton Error"
    with pytest.raises(DeviceLost, match="illegal memory access"):
        next(found)


def test_a_record_comes_back_from_its_file_as_it_was():
    record = run_one(make(good), CPU, CEILINGS, budget_s=0.0)
    written = json.loads(json.dumps(record.as_json()))
    assert Record.from_json(written) == record


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "12", None])
def test_what_is_no_number_in_a_file_is_no_figure(value):
    written = run_one(make(good), CPU, CEILINGS, budget_s=0.0).as_json()
    read = Record.from_json(written | {"median_ms": value, "product_fraction": value})
    assert read.time_ms is None
    assert read.floor_fraction is None
    assert status_text(read) == "no figure"


def test_where_the_kernels_of_a_call_cannot_be_told_the_others_are_measured(monkeypatch):
    calls = iter(range(3))

    def told(prepared, device):
        if next(calls) == 1:
            raise RuntimeError("Triton Error")
        return ()

    monkeypatch.setattr(runner, "started_kernels", told)
    chosen = [make(good, name) for name in "abc"]
    records = run_together(chosen, CPU, CEILINGS, budget_s=0.0)
    assert [record.status for record in records] == [
        "ok",
        "failed: RuntimeError: Triton Error",
        "ok",
    ]


def test_an_unexpected_error_is_no_regression(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("the tool broke")

    monkeypatch.setattr(command, "benchmarks", broken)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "run", "--list", "--device", "cpu"])
    assert ended.value.code == ExitCode.FAILED
    assert "the tool broke" in capsys.readouterr().err


def test_a_suite_is_released_when_another_begins():
    blocks._held[("made", None)] = (None, None)
    run_one(make(good), CPU, None, budget_s=0.0)
    assert not blocks._held


def test_the_file_holds_environment_ceilings_and_records():
    records = list(run([make(good), make(raising(ValueError("no")), "two")], CPU, None, budget_s=0))
    written = json.loads(json.dumps(result(records, {"fingerprint": "f"}, CPU, CEILINGS)))
    assert written["schema"] == SCHEMA
    assert written["complete"] is True
    assert [record["seed"] for record in written["records"]] == [0, 0]
    assert written["environment"] == {"fingerprint": "f"}
    assert written["ceilings"] == {"product_flops": 1e9, "copy_bytes": 1e9}
    assert [record["status"] for record in written["records"]] == ["ok", "failed: ValueError: no"]
    assert {"samples_ms", "order", "peak_extra_bytes", "memory_source", "unit", "mode"} <= written[
        "records"
    ][0].keys()
    assert table(records).row_count == 2


def test_a_run_that_is_stopped_keeps_its_records(monkeypatch, tmp_path):
    def stopped(device):
        raise KeyboardInterrupt

    chosen = {"a": make(good), "b": make(stopped, "two")}
    monkeypatch.setattr(command, "measure_ceilings", lambda _: CEILINGS)
    monkeypatch.setattr(command, "benchmarks", lambda *_: chosen)
    path = tmp_path / "run.json"
    call = ["run", "--suite", "ops", "--device", "cpu", "--budget", "0", "--out", str(path)]
    assert CliRunner().invoke(app, call).exit_code != ExitCode.OK
    written = json.loads(path.read_text())
    assert written["complete"] is False
    assert [record["id"] for record in written["records"]] == [chosen["a"].id]
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]
    chosen.pop("b")
    assert CliRunner().invoke(app, call).exit_code == ExitCode.OK
    assert json.loads(path.read_text())["complete"] is True


def test_a_record_tells_the_kernels_that_a_call_starts():
    class Kernel:
        """A Triton kernel's way to be started; `start` returns what was compiled."""

        def __init__(self, name, registers):
            metadata = SimpleNamespace(shared=1024, num_warps=4, num_stages=3)
            self.compiled = SimpleNamespace(
                name=name, hash=f"{name} hash", n_regs=registers, n_spills=0, metadata=metadata
            )

        def __getitem__(self, grid):
            return lambda *args, **meta: self.compiled

    first, second = Kernel("first", 40), Kernel("second", 80)

    def call():
        for kernel in (first, second, first):
            launch(kernel, (1,))

    with compiled_kernels() as started:
        call()
    assert [one.name for one in started] == ["first", "second", "first"]
    assert kernel_metrics(started[1]) == {
        "kernel": "second",
        "hash": "second hash",
        "registers": 80,
        "spilled_registers": 0,
        "shared_bytes": 1024,
        "warps": 4,
        "stages": 3,
    }
    assert [one["kernel"] for one in metrics_of([*started, None])] == ["first", "second"]
    with compiled_kernels() as started:
        launch(first, (0,))
    assert started == []


def test_the_command_ends_with_the_outcome(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "measure_ceilings", lambda _: CEILINGS)
    path = tmp_path / "run.json"
    call = ["run", "--suite", "ops", "--device", "cpu", "--budget", "0", "--out", str(path)]
    chosen = {"a": make(good)}
    monkeypatch.setattr(command, "benchmarks", lambda *_: chosen)
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 0, found.output
    assert len(json.loads(path.read_text())["records"]) == 1
    chosen["b"] = make(raising(ValueError("no")), "two")
    found = CliRunner().invoke(app, call)
    assert found.exit_code == ExitCode.FAILED
    assert "no figure: ops/two/case/float32/forward/reference: failed: ValueError: no" in (
        found.output
    )


def test_the_command_lists_ids_and_refuses_wrong_names():
    found = CliRunner().invoke(app, ["run", "--list", "--device", "cpu", "--only", "*/tokenizer/*"])
    assert found.output.split() == ["data/tokenizer/captions_48/-/-/svilm"]
    for wrong in (["--suite", "opps"], ["--only", "nothing"], ["--device", "tpu"]):
        found = CliRunner().invoke(app, ["run", "--list", "--device", "cpu", *wrong])
        assert found.exit_code == ExitCode.USAGE
