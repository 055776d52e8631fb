"""`svilm profile`: ranges, idle time and memory read from traces made by hand and by PyTorch."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from svilm_fast.bench.profile.command import find_benchmark
from svilm_fast.bench.profile.picture import write_memory
from svilm_fast.bench.profile.record import record, unused
from svilm_fast.bench.profile.text import describe, outer_tools
from svilm_fast.bench.profile.trace import covered, read_trace, trace_of
from svilm_fast.cli import main
from svilm_fast.core.trace_ranges import phase

CPU = torch.device("cpu")


def span(name, category, start, length, lane=1):
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "ts": start,
        "dur": length,
        "pid": 0,
        "tid": lane,
    }


STEP = [
    span("svilm.step", "user_annotation", 0, 1000),
    span("svilm.data", "user_annotation", 0, 200),
    span("svilm.backward", "user_annotation", 300, 600),
    span("svilm.replay", "user_annotation", 400, 100),
    span("aten::linear", "cpu_op", 300, 100),
    span("aten::mm", "cpu_op", 310, 80),
    span("aten::mm", "cpu_op", 450, 50),
    span("aten::elsewhere", "cpu_op", 500, 400, lane=2),
    span("gloo:all_reduce", "user_annotation", 700, 150, lane=3),
    span("svilm_fast/models/a.py(7): forward", "python_function", 290, 220),
    span("torch/nn/functional.py(1): linear", "python_function", 295, 110),
    span("aten::before", "cpu_op", -50, 20),
]
ON_GPU = [
    *STEP,
    span("gemm", "kernel", 400, 300, lane="stream 7"),
    span("copy", "gpu_memcpy", 600, 200, lane="stream 8"),
    span("ncclDevKernel_AllGather", "kernel", 850, 50, lane="stream 9"),
]


def named(costs):
    return {cost.name: cost for cost in costs}


def test_ranges_are_nested_and_the_step_is_none_of_them():
    ranges = named(trace_of(STEP).ranges())
    assert ranges.keys() == {"data", "backward", "replay"}
    assert (ranges["backward"].total, ranges["backward"].own) == (600, 500)


def test_operators_are_those_of_the_step_and_its_thread():
    operators = named(trace_of(STEP).operators())
    assert operators.keys() == {"aten::linear", "aten::mm"}
    assert (operators["aten::linear"].total, operators["aten::linear"].own) == (100, 20)
    assert (operators["aten::mm"].calls, operators["aten::mm"].own) == (2, 130)


def test_on_a_cpu_what_is_no_operator_is_python_or_waiting():
    trace = trace_of(STEP)
    assert not trace.on_gpu
    assert (trace.length, trace.busy(), trace.communication()) == (1000, 150, 150)
    longest = [(500, "backward", "aten::mm"), (300, "data", "the start of the step")]
    assert trace.gaps(2) == longest


def test_on_a_gpu_idle_time_is_that_without_a_kernel_on_any_stream():
    trace = trace_of(ON_GPU)
    assert trace.on_gpu
    assert trace.busy() == 450
    assert trace.communication() == 200
    assert [cost.name for cost in trace.kernels()] == ["gemm", "copy", "ncclDevKernel_AllGather"]
    assert trace.gaps(1) == [(400, "data", "the start of the step")]
    assert "GPU idle" in describe(trace)


def test_operators_belong_to_the_innermost_function_of_ours():
    (function,) = trace_of(STEP).functions()
    assert function.name == "svilm_fast/models/a.py(7): forward"
    assert (function.calls, function.own) == (2, 150)


def test_overlapping_spans_count_once():
    trace = trace_of([span("a", "cpu_op", 0, 10), span("b", "cpu_op", 5, 10)])
    assert covered(trace.events) == 15
    assert covered([]) == 0


def test_an_unmarked_trace_is_taken_whole():
    trace = trace_of([span("aten::mm", "cpu_op", 100, 10), span("aten::mm", "cpu_op", 140, 10)])
    assert trace.length == 50
    assert trace.busy() == 20


@pytest.mark.parametrize("content", [b"", b"{}", b'{"traceEvents": 3}', b"\x1f\x8b nonsense"])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_file_that_is_no_trace_is_an_error(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a Chrome trace"):
        read_trace(path)


def test_an_empty_trace_and_a_missing_one_are_errors(tmp_path):
    with pytest.raises(ValueError, match="nothing ran"):
        trace_of([])
    with pytest.raises(ValueError, match="no trace"):
        read_trace(tmp_path / "absent.json")


def test_a_recorded_call_has_ranges_operators_and_memory(tmp_path):
    weight = torch.randn(64, 64, requires_grad=True)

    def call():
        with phase("embed"):
            product = weight @ weight
        with phase("backward"):
            product.sum().backward()

    path = tmp_path / "call.json.gz"
    record(call, path, steps=2, device=CPU, stacks=False)
    trace = read_trace(path)
    assert len(trace.windows) == 2
    ranges = named(trace.ranges())
    assert (ranges["embed"].calls, ranges["backward"].calls) == (2, 2)
    assert named(trace.operators())["aten::mm"].calls == 6
    assert 0 < trace.busy() <= trace.length
    assert max(trace.memory[0].allocated) - min(trace.memory[0].allocated) >= 64 * 64 * 4
    picture = tmp_path / "memory.png"
    assert write_memory(trace, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = describe(trace, rows=1)
    assert text.startswith("2 steps")
    assert "more" in text


def test_the_command_profiles_an_op_and_reads_its_own_trace(tmp_path, capsys):
    arguments = ["--case", "ragged", "--direction", "forward", "--steps", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["profile", "op", "temporal", *arguments, "--out", str(tmp_path)])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "ops/temporal/ragged/float32/forward/reference on cpu" in told
    (written,) = tmp_path.glob("*.json.gz")
    assert json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]
    with pytest.raises(SystemExit):
        main(["profile", "trace", str(written)])
    assert "operator (host)" in capsys.readouterr().out


def test_ours_is_profiled_unless_a_peer_is_asked_for():
    wanted = {"case": None, "direction": "both", "dtype": None, "provider": None}
    assert find_benchmark("infonce", CPU, wanted).parts["provider"] == "reference"
    wanted["provider"] = "eager"
    found = find_benchmark("infonce", CPU, wanted)
    assert found.parts["provider"] == "eager"
    assert find_benchmark(found.id, CPU, {}).id == found.id


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("infonze", {}, "unknown op 'infonze'; registered: infonce, grounding"),
        ("infonce", {"case": "huge"}, "no case 'huge' on cpu; there are:"),
        ("infonce", {"provider": "magic"}, "there are: reference"),
    ],
)
def test_what_is_not_registered_is_told_with_what_is(name, change, says):
    with pytest.raises(ValueError, match=says):
        find_benchmark(name, CPU, change)


def test_the_outer_profilers_get_a_ready_command(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool: "/usr/bin/ncu" if tool == "ncu" else None)
    nsys, ncu = outer_tools("svilm profile op infonce").splitlines()
    assert nsys.startswith("nsys (not on PATH here): nsys profile --trace cuda,nvtx")
    assert ncu.startswith("ncu: ncu --set full --nvtx --nvtx-include svilm.step/")
    assert ncu.endswith("svilm profile op infonce --plain")


@pytest.mark.slow
def test_a_training_step_is_profiled_with_its_ranges(tmp_path, capsys, ranks):
    small = ["video.frames=4", "video.image_size=32", "video.num_segments=2", "video.depth=2"]
    small += ["training.global_batch=4", "training.micro_batch=2", "text.depth=1"]
    arguments = ["--synthetic", "--steps", "1", "--out", str(tmp_path), *small]
    with pytest.raises(SystemExit) as ended:
        main(["profile", "step", "--config", "demo", *arguments])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for name in ("data", "inputs", "embed", "objective", "replay", "reduce", "optimizer"):
        assert f"\n{name} " in told
    assert (tmp_path / "step_memory.png").is_file()


@pytest.mark.slow
def test_open_settings_of_a_profiled_step_are_settled_as_those_of_a_run(tmp_path, capsys, ranks):
    small = ["video.frames=4", "video.image_size=32", "video.num_segments=2", "video.depth=1"]
    small += ["training.global_batch=4", "training.micro_batch=auto", "text.depth=1"]
    small += ["training.memory_bytes=4000000000"]
    arguments = ["--synthetic", "--steps", "1", "--out", str(tmp_path), *small]
    with pytest.raises(SystemExit) as ended:
        main(["profile", "step", "--config", "demo", *arguments])
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    assert "settled: training.micro_batch" in told.out
    assert (tmp_path / "step.json.gz").is_file()


def test_an_earlier_trace_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("step.json.gz", "step-2.json.gz", "step_memory.png"):
        (tmp_path / name).write_text("earlier")
    assert unused(tmp_path / "step.json.gz").name == "step-3.json.gz"
    assert unused(tmp_path / "step_memory.png").name == "step_memory-2.png"
    assert unused(tmp_path / "op.json.gz").name == "op.json.gz"
