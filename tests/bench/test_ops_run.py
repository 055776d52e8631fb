"""The op benchmark: what it measures first, and what it does with what it cannot measure."""

import torch

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.ops import measure, run
from svilm_fast.kernels.registry import ops

CEILINGS = Ceilings(product_flops=1.0, copy_bytes=1.0)


def test_fused_paths_of_all_cases_come_before_any_peer(monkeypatch):
    order = []

    def measured(op, case, *_, only, **__):
        order.extend((name, op.name, case) for name in ("fused", "eager") if only(name))
        return iter(())

    monkeypatch.setattr(run, "measure_case", measured)
    chosen = [ops()["infonce"], ops()["grounding"]]
    device = torch.device("cuda")
    run.benchmark(chosen, torch.float32, device, CEILINGS, budget_s=0.1, deadline_s=100)
    names = [name for name, *_ in order]
    number = sum(len(op.cases) for op in chosen)
    assert names == ["fused"] * number + ["eager"] * number


def test_a_deadline_that_has_passed_is_told_per_pass():
    device = torch.device("cuda")
    chosen = [ops()["grounding"]]
    records = run.benchmark(chosen, torch.float32, device, CEILINGS, budget_s=0.1, deadline_s=-1)
    assert {record.provider for record in records} == {"fused", "others"}
    assert all(record.status.startswith("skipped") for record in records)


def test_a_long_call_is_not_repeated_for_its_host_time(monkeypatch):
    counts = []

    def counted(call, device, *, count):
        counts.append(count)
        return 1.0

    monkeypatch.setattr(measure, "host_time_us", counted)
    timing = measure.Timing((100.0,), None)
    monkeypatch.setattr(measure, "measure", lambda *_, **__: timing)
    op = ops()["temporal"]
    records = list(
        measure.measure_case(
            op,
            "ragged",
            torch.float32,
            torch.device("cpu"),
            CEILINGS,
            budget_s=0.3,
            only=lambda name: name == "reference",
        )
    )
    assert [record.status for record in records] == ["ok"] * 3
    assert counts == [3]


def test_a_compiled_peer_is_specialised_anew_for_every_case(monkeypatch):
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    def peer(segments, paste_mask):
        return segments.square().mean()

    function = torch.compile(peer, backend=backend, dynamic=False)
    monkeypatch.setattr(measure, "providers", lambda *_: {"compile": function})
    op = ops()["temporal"]
    for width in (8, 16):
        before = len(traced)
        shape = {"batch": 2, "segments": 4, "width": width}
        monkeypatch.setitem(op.cases, "case", shape)
        with torch._dynamo.config.patch(recompile_limit=1):
            for _ in measure.measure_case(
                op, "case", torch.float32, torch.device("cpu"), CEILINGS, budget_s=0.0
            ):
                pass
        assert len(traced) > before


def test_another_workspace_is_only_measured_on_the_fused_path():
    op = ops()["infonce"]
    gpu = torch.device("cuda")
    with_budget = {name for name, shape in op.cases.items() if "workspace_bytes" in shape}
    assert with_budget
    for case, shape in op.cases.items():
        only_fused = measure.providers(op, gpu, shape).keys() == {"fused"}
        assert only_fused == (case in with_budget)
