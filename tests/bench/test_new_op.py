"""A new op registers once; suites, counts, static gate and the peers command take it as it is."""

from functools import partial

import pytest
import torch

from svilm_fast.bench.counts import host, ranks
from svilm_fast.bench.counts.peak import count_peaks
from svilm_fast.bench.peers import is_peer, peers
from svilm_fast.bench.run import peers_command
from svilm_fast.bench.run.runner import run_one
from svilm_fast.bench.static import collect
from svilm_fast.bench.suites import benchmarks
from svilm_fast.kernels import registry, self_check
from svilm_fast.kernels.registry import Op, OpCost, Sizes, Variant, ops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def square_sum(rows, *, backend=None):
    return rows.square().sum()


def cost(case, dtype):
    size = float(case["batch"] * case["width"])
    return OpCost(2 * size, size * dtype.itemsize, size, 2 * size * dtype.itemsize)


def make_inputs(case, dtype, device, seed):
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(case["batch"], case["width"], generator=generator, device=device)
    return {"rows": rows.to(dtype)}


def sizes(batch):
    return {"batch": batch, "width": 4}


@pytest.fixture
def toy(monkeypatch):
    ops()
    monkeypatch.setattr(registry, "_OPS", dict(registry._OPS))
    return registry.register(
        Op(
            name="toy",
            api=square_sum,
            reference=square_sum,
            cost=cost,
            cases={"target": sizes(64)},
            make_inputs=make_inputs,
            sizes=Sizes(
                tiny=sizes(1),
                small=sizes(3),
                large=sizes(32),
                cpu={"few": sizes(8)},
                peers={"compared": sizes(16)},
                compared=("target",),
            ),
            unit=("rows", "batch"),
            variants=(Variant("toy", "target float32", lambda: None, ("sm_90",), counted=True),),
            distributed=square_sum,
            peers={"toy_peer": partial(torch.einsum, "ij,ij->")},
        )
    )


def test_every_suite_has_its_benchmarks(toy):
    on_cpu, on_gpu = (benchmarks(["ops", "host"], d, "*/toy/*") for d in (CPU, GPU))
    assert set(on_cpu) == {
        "host/toy/plan_target_float32/-/-/fused",
        "host/toy/tiny_call/float32/forward/reference",
        *(
            f"ops/toy/{case}/float32/{direction}/{provider}"
            for case in ("target", "few")
            for direction in ("forward", "backward", "both")
            for provider in ("reference", "toy_peer")
        ),
    }
    assert "ops/toy/target/bfloat16/both/fused" in on_gpu


def test_its_calls_are_proven_and_timed(toy):
    for id in (
        "host/toy/tiny_call/float32/forward/reference",
        "ops/toy/few/float32/both/reference",
    ):
        record = run_one(benchmarks(None, CPU)[id], CPU, None, budget_s=0.0)
        assert record.status == "ok"
    assert set(record.rates_per_s) == {"rows"}


def test_every_count_has_it(toy):
    names = [name for name, _ in host.cases()]
    assert "fused host | toy | target float32" in names
    assert "reference api | toy | both" in names
    assert "toy, both directions" in dict(count_peaks())
    cases = {name: call for name, call, _ in ranks._ops_cases()}
    [gradient] = cases["op toy, both directions"]()
    torch.testing.assert_close(gradient, 2 * make_inputs(sizes(3), torch.float32, "cpu", 0)["rows"])


def test_the_static_gate_the_peers_and_the_self_check_have_it(toy):
    assert collect.declared(["toy"]) == [("toy", "target float32", "sm_90")]
    assert peers("toy").keys() == {"toy_peer"}
    assert is_peer("toy_peer")
    assert not is_peer("reference")
    groups = list(peers_command._groups(CPU, ["toy"], None, None))
    assert {one.parts["case"] for group in groups for one in group} == {"compared"}
    assert "toy" in peers_command._compared()
    assert self_check.error_of(toy, "cpu", "reference") < self_check.BAR
