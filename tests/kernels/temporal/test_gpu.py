"""What only a GPU can show of the temporal ops: the compiled kernels, graphs, compilation."""

import pytest
import torch

from svilm_fast.kernels import ops, segment_pool, temporal_bce

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("sizes", [(1024, 8, 256), (64, 33, 768)])
def test_bce_against_float64(check_bce, sizes, loss, dtype):
    batch, segments, width = sizes
    regime = {"batch": batch, "segments": segments, "width": width}
    check_bce(check_bce.Regime(**regime, dtype=dtype, loss=loss))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pool_against_float64(check_pool, dtype):
    if dtype == torch.float32 and torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("fp32 takes the reference path on this GPU")
    check_pool(check_pool.Regime(batch=8, length=1568, width=768, segments=8, dtype=dtype))


def loss_of(bce, pool):
    segments, present = segment_pool(**pool, backend="fused")
    clips = temporal_bce(**bce, backend="fused")
    return clips + segments.float().square().sum() + present.sum()


def calls():
    registry = ops()
    return [
        op.make_inputs(op.cases["ragged"], torch.bfloat16, "cuda", 0)
        for op in (registry["temporal"], registry["segment_pool"])
    ]


def test_compiles_as_one_graph():
    bce, pool = calls()
    leaves = (bce["segments"], pool["tokens"])
    values = [loss_of(bce, pool), torch.compile(loss_of, fullgraph=True)(bce, pool)]
    gradients = [torch.autograd.grad(value, leaves) for value in values]
    torch.testing.assert_close(*values)
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_cuda_graph_replays(capture):
    bce, pool = calls()

    def run():
        value = loss_of(bce, pool)
        return value, *torch.autograd.grad(value, (bce["segments"], pool["tokens"]))

    expected, captured, graph = capture(run)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
