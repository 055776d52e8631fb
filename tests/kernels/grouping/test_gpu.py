"""What only a GPU can show of grouping: the compiled kernels, graphs, memory, host time."""

import pytest
import torch

from svilm_fast.kernels import grouping, ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SHAPES = {"target width": (6, 1000, 768, 32), "wide": (3, 500, 1024, 32), "few": (2, 77, 80, 20)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mode", ["gumbel", "hard", "soft"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False])
def test_against_float64(check_grouping, masked, shape, mode, dtype):
    # Without a mask, Hopper takes the streaming backward in half precision.
    if dtype == torch.float32 and torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("fp32 takes the reference path on this GPU")
    batch, length, width, groups = SHAPES[shape]
    check_grouping(
        check_grouping.Regime(
            mode=mode, dtype=dtype, batch=batch, length=length, width=width, groups=groups,
            masked=masked, dropped=mode == "gumbel", seed=1,
        )
    )  # fmt: skip


# Several tiles of 128 tokens in one program: the plan of small inputs would give each tile its own.
SEAMS = [
    {"length": length, "width": width, "groups": groups, "plan": (("splits", 1), ("chunk", 1024))}
    for length, width, groups in [
        (1000, 768, 32), (1, 64, 32), (127, 80, 17), (128, 48, 16), (129, 16, 1), (256, 768, 1),
        (385, 32, 17),
    ]
]  # fmt: skip
SEAMS.append({"length": 500, "width": 768, "groups": 32, "plan": (("splits", 2), ("chunk", 256))})


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9,
    reason="only Hopper streams",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["gumbel", "soft"])
@pytest.mark.parametrize("seam", range(len(SEAMS)))
def test_streaming_backward_over_several_tiles(check_grouping, seam, mode, dtype):
    more = {"temperature": 0.3} if mode == "soft" else {}
    check_grouping(check_grouping.Regime(mode=mode, dtype=dtype, seed=2, **SEAMS[seam], **more))


def call(case="ragged", dtype=torch.bfloat16):
    op = ops()["grouping"]
    return op.make_inputs(op.cases[case], dtype, "cuda", 0)


def test_fifty_runs_are_bit_equal():
    arguments = call("few_clips")
    leaves = [arguments[name] for name in ("queries", "tokens", "group_bias")]

    def run():
        out = grouping(**arguments, backend="fused")
        return *out, *torch.autograd.grad(out.pooled.float().square().sum(), leaves)

    first = run()
    for _ in range(49):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_cuda_graph_replays(capture):
    arguments = call()
    leaves = [arguments[name] for name in ("queries", "tokens", "group_bias")]

    def run():
        out = grouping(**arguments, backend="fused")
        return *out, *torch.autograd.grad(out.pooled.float().square().sum(), leaves)

    expected, captured, graph = capture(run)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))


def test_compiles_as_one_graph():
    arguments = call()

    def loss(tokens):
        return grouping(**(arguments | {"tokens": tokens}), backend="fused").pooled.float().sum()

    compiled = torch.compile(loss, fullgraph=True)
    values = [function(arguments["tokens"]) for function in (loss, compiled)]
    gradients = [torch.autograd.grad(value, arguments["tokens"])[0] for value in values]
    torch.testing.assert_close(*values)
    assert torch.equal(*gradients)


def test_memory_is_the_outputs_and_the_gradients():
    arguments = call("few_clips")
    grouping(**arguments, backend="fused").pooled.float().sum().backward()
    arguments = call("few_clips")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grouping(**arguments, backend="fused").pooled.float().sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    tokens = arguments["tokens"]
    partial_sums = 64 * 2**20
    assert peak <= tokens.numel() * tokens.element_size() + partial_sums
