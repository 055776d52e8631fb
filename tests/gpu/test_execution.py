"""Repeatability, `torch.compile`, CUDA graphs and memory of every op on a GPU."""

import pytest
import torch

from svilm_fast.bench.suites.proof import first_output
from svilm_fast.kernels.registry import ops

FIRST = [(name, next(iter(op.cases))) for name, op in ops().items()]
# Bytes that a fused call may use at its peak, beyond inputs, gradients and outputs: the workspace
# if the op has one, otherwise less than a copy of the tokens.
EXTRA_MIB = {"infonce": 704, "grounding": 512}
OTHER_EXTRA_MIB = 256


def _step(op, inputs, wanted):
    output = first_output(op.api(**inputs, backend="fused"))
    return output, *torch.autograd.grad(output, wanted, torch.ones_like(output))


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_fifty_runs_are_bit_equal(make, name, case):
    op, inputs, wanted = make(name, case, torch.bfloat16)
    first = _step(op, inputs, wanted)
    for _ in range(49):
        for before, after in zip(first, _step(op, inputs, wanted), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_compiles_into_one_graph(make, name, case):
    op, inputs, wanted = make(name, case, torch.bfloat16)
    eager = _step(op, inputs, wanted)
    compiled = torch.compile(
        lambda: first_output(op.api(**inputs, backend="fused")), fullgraph=True
    )
    output = compiled()
    gradients = torch.autograd.grad(output, wanted, torch.ones_like(output))
    for before, after in zip(eager, (output, *gradients), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_runs_in_a_cuda_graph(make, capture, name, case):
    op, inputs, wanted = make(name, case, torch.bfloat16)
    expected, captured, graph = capture(lambda: _step(op, inputs, wanted))
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for before, after in zip(expected, captured, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_no_call_waits_for_the_device(make, name, case):
    op, inputs, wanted = make(name, case, torch.bfloat16)
    _step(op, inputs, wanted)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(op, inputs, wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", sorted(ops()))
def test_peak_memory_of_the_largest_case(make, device, name):
    op = ops()[name]
    largest = max(op.cases, key=lambda case: op.cost(op.cases[case], torch.bfloat16).forward_flops)
    op, inputs, wanted = make(name, largest, torch.bfloat16)
    result = sum(t.numel() * t.element_size() for t in _step(op, inputs, wanted))
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = _step(op, inputs, wanted)
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - before - result
    assert len(kept) == 1 + len(wanted)
    assert extra <= EXTRA_MIB.get(name, OTHER_EXTRA_MIB) * 2**20, (
        f"{name} {largest}: {extra / 2**20:.0f} MiB beyond its results"
    )
