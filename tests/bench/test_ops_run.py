"""The op benchmark's order of work, and what it does with what it cannot measure."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.bench.gpu import ops_run as run
from svilm_fast.bench.run import runner
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import run_one
from svilm_fast.bench.run.text import gluon_against_fused
from svilm_fast.bench.suites import benchmarks
from svilm_fast.bench.suites import ops as suite
from svilm_fast.bench.suites.ops import cases
from svilm_fast.bench.suites.proof import Case
from svilm_fast.kernels.backend import gluon_wanted, say_once
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.launch import compiled_kernels, launch
from svilm_fast.kernels.peers import CannotRun
from svilm_fast.kernels.registry import ops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_fused_paths_of_all_cases_come_before_any_peer():
    providers = [one.parts["provider"] for one in suite.declared(GPU)]
    fused = providers.count("fused")
    assert fused == 3 * sum(len(op.cases) for op in ops().values())
    assert set(providers[:fused]) == {"fused"}
    assert "fused" not in providers[fused:]


def test_what_targets_compare_comes_before_the_other_peers():
    places = {one.id: place for place, one in enumerate(suite.declared(GPU))}
    wanted = "ops/infonce/pairs_65536_dim_512/bfloat16/both/inf_cl"
    assert places["ops/grouping/target/bfloat16/both/eager"] < min(
        place for id, place in places.items() if "/pairs_1024_dim_256/" in id and "fused" not in id
    )
    assert wanted in places
    assert next(iter(places)).startswith("ops/infonce/")
    assert len(places) == len(list(suite.declared(GPU)))


def test_another_workspace_is_only_measured_on_the_fused_paths():
    op = ops()["infonce"]
    with_budget = {name for name, shape in op.cases.items() if "workspace_bytes" in shape}
    assert with_budget
    for case, shape in op.cases.items():
        only_fused = suite.providers(op, GPU, shape).keys() == {"fused", "gluon"}
        assert only_fused == (case in with_budget)


@pytest.mark.parametrize("op", sorted(ops()))
def test_every_op_has_a_case_that_a_cpu_can_measure(op):
    registered = ops()[op]
    assert cases(registered, CPU)
    assert cases(registered, GPU).keys() == registered.cases.keys()


def test_a_compiled_peer_is_specialised_anew_for_every_case():
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    def peer(segments, paste_mask):
        return segments.square().mean()

    function = torch.compile(peer, backend=backend, dynamic=False)
    op = ops()["temporal"]
    for width in (8, 16):
        before = len(traced)
        shape = {"batch": 2, "segments": 4, "width": width}
        with torch._dynamo.config.patch(recompile_limit=1):
            case = suite._case(op, str(width), shape, torch.float32, CPU)
            function(**case.inputs)
        assert len(traced) > before
    suite.release()


def _case():
    op = ops()["infonce"]
    inputs = op.make_inputs({"videos": 8, "texts": 8, "dim": 16}, torch.float32, CPU, 0)
    return Case(op.reference, inputs, torch.float32, CPU)


def test_a_wrong_output_and_a_wrong_gradient_are_found():
    case = _case()

    def reference(**inputs):
        return ops()["infonce"].api(**inputs, backend="reference")

    assert case.verify(reference, "both") < 1e-3
    with pytest.raises(WrongResult, match="output"):
        case.verify(lambda **inputs: 1.1 * reference(**inputs), "forward")

    def without_gradient_of_texts(**inputs):
        return reference(**inputs | {"texts": inputs["texts"].detach()})

    assert case.verify(without_gradient_of_texts, "forward") < 1e-3
    with pytest.raises(WrongResult, match="no gradient of texts"):
        case.verify(without_gradient_of_texts, "backward")

    def half_the_gradient(**inputs):
        videos = inputs["videos"]
        return reference(**inputs | {"videos": (videos + videos.detach()) / 2})

    with pytest.raises(WrongResult, match="gradient of videos"):
        case.verify(half_the_gradient, "both")


def test_the_command_writes_records_and_tells_a_failure_by_its_exit_status(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "measure_ceilings", lambda _: Ceilings(1e9, 1e9))
    arguments = ["--op", "temporal", "--case", "ragged", "--device", "cpu", "--budget", "0.01"]
    assert run.main([*arguments, "--out", str(tmp_path)]) == 0
    [path] = tmp_path.glob("*/ops.json")
    report = json.loads(path.read_text())
    assert report["schema"] == 1
    assert {record["status"] for record in report["records"]} == {"ok"}
    assert {r["id"] for r in report["records"]} == set(
        benchmarks(["ops"], CPU, "ops/temporal/ragged/*")
    )
    op = ops()["temporal"]
    monkeypatch.setattr(
        suite, "providers", lambda *_: {"reference": lambda **inputs: 2 * op.reference(**inputs)}
    )
    assert run.main([*arguments, "--out", str(tmp_path)]) == 5
    assert "wrong_result: output: relative error" in capsys.readouterr().err


def test_an_unfinished_run_is_resumed_without_what_broke_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure_ceilings", lambda _: Ceilings(1e9, 1e9))
    call = ["--op", "temporal", "--case", "ragged", "--device", "cpu", "--budget", "0"]
    call += ["--out", str(tmp_path), "--announce"]
    ids = list(benchmarks(["ops"], CPU, "ops/temporal/ragged/*"))
    measured = []

    def stops_at_the_third(benchmarks, *_, starting, **__):
        for benchmark in benchmarks:
            starting(benchmark)
            if len(measured) == 2:
                raise RuntimeError("the device is lost")
            measured.append(benchmark.id)
            yield run_one(benchmark, CPU, None, budget_s=0.0)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", stops_at_the_third)
        with pytest.raises(RuntimeError, match="lost"):
            run.main(call)
    [path] = tmp_path.glob("*/ops.json")
    first = json.loads(path.read_text())
    assert first["complete"] is False
    assert [record["id"] for record in first["records"]] == measured
    assert capsys.readouterr().out.count("measuring ") == 3
    lost = next(id for id in ids if id not in measured)
    assert run.main([*call, "--resume", "--without", lost, "it broke the device"]) == 5
    second = json.loads(path.read_text())
    assert second["complete"] is True
    assert second["records"][:2] == first["records"]
    status = {record["id"]: record["status"] for record in second["records"]}
    assert status.keys() == set(ids)
    assert {id for id in ids if status[id] != "ok"} == {lost}
    assert status[lost] == "failed: it broke the device"
    assert [record["position"] for record in second["records"][2:]] == list(range(2, len(ids)))
    for change, code, message in (
        ({}, 2, "of a finished run"),
        ({"environment": {"fingerprint": "another"}}, 3, "of another machine"),
    ):
        path.write_text(json.dumps(second | change))
        with pytest.raises(SystemExit) as stop:
            run.main([*call, "--resume"])
        assert stop.value.code == code
        assert message in capsys.readouterr().err


def test_a_run_that_does_not_resume_takes_an_older_file_away(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_ceilings", lambda _: Ceilings(1e9, 1e9))
    call = ["--op", "temporal", "--case", "ragged", "--device", "cpu", "--budget", "0"]
    assert run.main([*call, "--out", str(tmp_path)]) == 0
    [path] = tmp_path.glob("*/ops.json")

    def crashes(*_, **__):
        raise RuntimeError("in the first benchmark")

    monkeypatch.setattr(runner, "run", crashes)
    with pytest.raises(RuntimeError):
        run.main([*call, "--out", str(tmp_path)])
    assert not path.exists()


def test_an_unknown_op_or_case_is_a_usage_error(capsys):
    for arguments in (["--op", "pooling"], ["--case", "nothing"]):
        with pytest.raises(SystemExit) as stop:
            run.main([*arguments, "--device", "cpu"])
        assert stop.value.code == 2
    assert "registered: grounding" in capsys.readouterr().err


def test_it_needs_nothing_but_pytorch_and_triton():
    blocked = "typer rich pydantic deepspeed av tokenizers yaml einops matplotlib pytest_benchmark"
    program = (
        f"import sys\nfor name in {blocked.split()!r}:\n    sys.modules[name] = None\n"
        "from svilm_fast.bench.gpu.ops_run import main\n"
        "import torch\nfrom svilm_fast.bench.suites import benchmarks\n"
        "assert benchmarks(['ops', 'host'], torch.device('cuda'))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def _timed(provider, time, direction="forward"):
    return Record(
        id=provider,
        suite="ops",
        name="infonce",
        case="big",
        dtype="bfloat16",
        direction=direction,
        provider=provider,
        status="ok" if time else "oom",
        median_ms=time,
        p20_ms=time and 0.9 * time,
        p80_ms=time and 1.1 * time,
    )


@pytest.mark.parametrize(
    ("gluon", "fused", "verdict"),
    [
        (2.0, 3.0, "Gluon wins: 1.500 times as fast as plain Triton"),
        (3.0, 2.0, "plain Triton wins: Gluon is 0.667 times as fast as plain Triton"),
        (2.0, 2.1, "no winner: Gluon is 1.050 times as fast as plain Triton, within the spread"),
        (None, 2.0, None),
        (2.0, None, None),
    ],
)
def test_the_run_says_which_kernels_win(gluon, fused, verdict):
    records = [_timed("gluon", gluon), _timed("fused", fused)]
    expected = [] if verdict is None else [f"infonce big bfloat16 forward: {verdict}"]
    assert gluon_against_fused(records) == expected


def test_gluon_is_measured_where_a_verdict_judges_it():
    rows = [one.parts for one in suite.declared(GPU) if one.parts["provider"] == "gluon"]
    directions = ("forward", "backward", "both")
    for op in ops().values():
        kernels = {"forward": op.gluon, "backward": op.gluon_backward}
        wanted = [one for one in directions if kernels.get(one, "both") is not None]
        found = [row["direction"] for row in rows if row["name"] == op.name]
        assert bool(found) == op.has_gluon
        assert not found or found == len(found) // len(wanted) * wanted
    assert {"infonce", "grounding"} <= {row["name"] for row in rows}
    records = [_timed(name, 2.0, one) for name in ("fused", "gluon") for one in directions]
    found = [text.split(":")[0] for text in gluon_against_fused(records)]
    assert found == [f"infonce big bfloat16 {one}" for one in directions]


def test_without_a_gluon_kernel_of_backward_it_is_not_measured_alone():
    op = replace(ops()["infonce"], gluon_backward=None)
    rows = suite.of_provider(op, "big", {"videos": 1}, torch.float32, "gluon", op.api)
    assert [row.parts["direction"] for row in rows] == ["forward", "both"]


def test_without_a_gluon_kernel_of_forward_it_is_not_measured_alone():
    op = replace(ops()["infonce"], gluon=None, gluon_backward="gluon_gradient_kernel")
    shape = op.cases["pairs_65536_dim_512"]
    provider = suite.providers(op, GPU, shape)["gluon"]
    rows = list(suite.of_provider(op, "big", shape, torch.float32, "gluon", provider))
    assert [row.parts["direction"] for row in rows] == ["backward", "both"]


@pytest.mark.parametrize("name", ["fused", "gluon"])
@pytest.mark.parametrize("taken", [True, False])
def test_backward_runs_the_kernels_of_its_provider(name, taken):
    """Although it starts after the provider has returned."""

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *_: self

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, videos):
            launch(Kernel("gluon_sums_kernel"), (1,))
            return videos.sum()

        @staticmethod
        def backward(ctx, upstream):
            gluon = gluon_wanted(upstream.device) and taken
            launch(Kernel("gluon_gradient_kernel" if gluon else "dots_gradient_kernel"), (1,))
            return upstream.expand(2)

    op = replace(
        ops()["infonce"],
        api=lambda videos: Sum.apply(videos),
        reference=lambda videos: videos.sum(),
        make_inputs=lambda *_: {"videos": torch.ones(2)},
        gluon_backward="gluon_gradient_kernel",
    )
    case = f"{name} {taken}"
    shape = op.cases["pairs_65536_dim_512"]
    provider = suite.providers(op, GPU, shape)[name]
    for row in suite.of_provider(op, case, shape, torch.float32, name, provider):
        direction = row.parts["direction"]
        ready = row.prepare(CPU)
        if name == "gluon" and direction != "forward" and not taken:
            with pytest.raises(Skipped, match="does not start gluon_gradient_kernel"):
                ready.verify()
            continue
        assert ready.verify() == 0
        with compiled_kernels() as started:
            ready.call()
        backward = "gluon_gradient_kernel" if name == "gluon" and taken else "dots_gradient_kernel"
        assert (backward in {one.name for one in started}) == (direction != "forward")


@pytest.mark.parametrize("environment", ["auto", "gluon"])
@pytest.mark.parametrize("taken", [True, False])
def test_providers_choose_the_kernels_whatever_the_environment(monkeypatch, environment, taken):
    monkeypatch.setenv("SVILM_KERNELS", environment)

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *_: self

    def api(videos):
        gluon = gluon_wanted(videos.device) and taken
        launch(Kernel("gluon_sums_kernel" if gluon else "sums_kernel"), (1,))
        return videos

    op = replace(ops()["infonce"], api=api)
    providers = suite.providers(op, GPU, op.cases["pairs_65536_dim_512"])
    videos = torch.zeros(1)
    with compiled_kernels() as started:
        assert providers["fused"](videos=videos) is videos
        if taken:
            assert providers["gluon"](videos=videos) is videos
        else:
            with pytest.raises(CannotRun, match="does not start gluon_sums_kernel: none of its"):
                providers["gluon"](videos=videos)
    second = "gluon_sums_kernel" if taken else "sums_kernel"
    assert [kernel.name for kernel in started] == ["sums_kernel", second]


def test_a_skipped_gluon_row_says_why_the_path_was_not_run(monkeypatch):
    def api(videos):
        say_once("infonce", "plain kernels instead of Gluon", "fp32 takes three steps")
        launch(Kernel(), (1,))
        return videos

    class Kernel:
        name = "sums_kernel"

        def __getitem__(self, grid):
            return lambda *_: self

    op = replace(ops()["infonce"], api=api)
    provider = suite.providers(op, GPU, op.cases["pairs_65536_dim_512"])["gluon"]
    case = Case(op.reference, {"videos": torch.zeros(1)}, torch.float32, CPU)
    for _ in range(2):  # the log says it once, the record always
        with pytest.raises(Skipped, match=r"gluon_sums_kernel: fp32 takes three steps$"):
            case.verify(provider, "forward")


def test_gluon_is_skipped_on_other_gpus():
    op = ops()["infonce"]
    provider = suite.providers(op, GPU, op.cases["pairs_1024_dim_256"])["gluon"]
    inputs = op.make_inputs(op.sizes.tiny, torch.float32, CPU, 0)
    with assume_traits(A100), pytest.raises(CannotRun, match=r"A100.* has \(8, 0\)"):
        provider(**inputs)
    assert "gluon" not in suite.providers(op, CPU, op.sizes.tiny)
    assert "gluon" not in suite.providers(ops()["temporal"], GPU, op.sizes.tiny)
