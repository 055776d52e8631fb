"""The compiled Gluon kernel: against float64, in a CUDA graph, and repeated.

A file of its own, because `make gpu` runs each file in a process: a kernel that hangs takes no
results of the plain kernels with it.
"""

import pytest
import torch

from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.infonce.fused import forward, layout
from svilm_fast.kernels.launch import compiled_kernels
from tests.kernels.infonce.gpu_inputs import leaves, on_gpu

pytestmark = pytest.mark.gpu


@pytest.fixture
def gluon(monkeypatch):
    """Calls take the Gluon kernel, also small ones; the test fails if none was started.

    With strips of 16 tiles, both groups multiply and the stages of the ring are used again.
    """
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Gluon kernels are for compute capability (9, 0)")
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    monkeypatch.setattr(forward, "strip_tiles", lambda *_: 16)
    with use_backend("gluon"), compiled_kernels() as kernels:
        yield
    assert "gluon_sums_kernel" in {kernel.metadata.name for kernel in kernels}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["random", "confident", "sharper"])
@pytest.mark.parametrize(
    "batch, dim", [(1300, 64), (1000, 80), (2049, 256), (4097, 320), (4096, 512)]
)
def test_against_float64(check, regime, gluon, name, batch, dim, dtype):
    check(*on_gpu(regime, name, batch, dim, dtype))


@pytest.mark.parametrize("strip", [1, 3, 16])
def test_chunks_and_rectangles(check, rows, gluon, monkeypatch, strip):
    # Two chunks of the sums: 2,048 and 1,285 rows.
    monkeypatch.setattr(layout, "ROW_SUM_BYTES", 1)
    monkeypatch.setattr(forward, "strip_tiles", lambda *_: strip)
    options = {"diagonal_offset": 400, "workspace_bytes": 1 << 20}
    check(
        rows(3333, 128, 0, torch.bfloat16).cuda(),
        rows(4444, 128, 1, torch.bfloat16).cuda(),
        14.0,
        options=options,
        naive={"offset": 400},
    )


def test_a_graph_replays_with_new_data(rows, gluon, capture):
    inputs = videos, _, scale = leaves(rows, 3000, 256)

    def step():
        loss = infonce(*inputs)
        return loss, *torch.autograd.grad(loss, inputs)

    first, captured, graph = capture(step)
    with torch.no_grad():
        scale.fill_(20.0)
        videos.copy_(rows(3000, 256, 7, torch.bfloat16))
    graph.replay()
    assert not torch.equal(captured[0], first[0])
    for found, expected in zip(captured, step()):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dim", [256, 320, 512])
def test_plain_kernels_agree_and_runs_repeat(rows, gluon, dim):
    inputs = leaves(rows, 5000, dim)
    first = infonce(*inputs)
    for _ in range(50):
        assert torch.equal(infonce(*inputs), first)
    with use_backend("fused"):
        torch.testing.assert_close(infonce(*inputs), first, rtol=1e-5, atol=1e-6)
