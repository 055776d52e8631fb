"""The compiled Gluon kernels: against float64, in a CUDA graph, and repeated.

A file of its own, because `make gpu` runs each file in a process: a kernel that hangs takes no
results of the plain kernels with it.
"""

from dataclasses import replace

import pytest
import torch

from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.device import traits
from svilm_fast.kernels.infonce import infonce, infonce_partials
from svilm_fast.kernels.infonce.fused import forward, gluon_gradient, layout
from svilm_fast.kernels.launch import compiled_kernels
from tests.kernels.infonce import gluon_gradient_blocks
from tests.kernels.infonce.gpu_inputs import leaves, on_gpu

pytestmark = pytest.mark.gpu


@pytest.fixture
def gluon(monkeypatch):
    """Calls take the Gluon kernels, also small ones; the test fails if one was not started.

    With strips of 16 tiles, both groups multiply and the stages of the ring are used again.
    """
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Gluon kernels are for compute capability (9, 0)")
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: 16)
    monkeypatch.setattr(gluon_gradient, "LEAST_PRODUCTS", 0)
    with use_backend("gluon"), compiled_kernels() as kernels:
        yield
    names = {kernel.metadata.name for kernel in kernels}
    assert {"gluon_sums_kernel", "gluon_gradient_kernel"} <= names


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
    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: strip)
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

    def step():
        loss = infonce(*inputs)
        return loss, *torch.autograd.grad(loss, inputs)

    first = step()
    for _ in range(50):
        for found, expected in zip(step(), first):
            assert torch.equal(found, expected)
    with use_backend("fused"):
        plain = step()
    torch.testing.assert_close(plain[0], first[0], rtol=1e-5, atol=1e-6)
    for found, expected in zip(first[1:], plain[1:]):
        # dS differs by the last bit of float16 at most, and so do its products.
        error = (found.double() - expected.double()).norm()
        assert error <= 2.0**-10 * expected.double().norm()


@pytest.mark.parametrize("scale", [14.0, 1000.0])
@pytest.mark.parametrize("dim", [64, 256, 512])
def test_upstream_of_partial_sums(rows, gluon, dim, scale):
    """At 1,000, many sums are out of range, so tiles take two powers per pair."""
    inputs = leaves(rows, 3000, dim)
    with torch.no_grad():
        inputs[2].fill_(scale)

    def gradients():
        sums = infonce_partials(*inputs)
        upstream = [torch.linspace(-1, 1, len(part), device=part.device) for part in sums]
        return torch.autograd.grad(list(sums), inputs, upstream)

    found = gradients()
    with use_backend("fused"):
        plain = gradients()
    for one, other in zip(found[:2], plain[:2]):
        error = (one.double() - other.double()).norm()
        assert error <= 2.0**-10 * other.double().norm()


@pytest.mark.parametrize("programs", [1, 5, 132])
@pytest.mark.parametrize("rows_of_chunk", [(0, 640), (640, 1000)])
@pytest.mark.parametrize("dim", [64, 80, 256, 512])
def test_gradient_of_every_tile(rows, gluon, monkeypatch, dim, rows_of_chunk, programs):
    """Tiles with all combinations of lost lines, and programs with one or many tiles of texts."""
    infonce(*leaves(rows, 1000, dim)).backward()  # what the fixture asks for
    start, stop = rows_of_chunk
    block = gluon_gradient_blocks.GradientBlock(
        1000, 712, dim, start, stop, offset=-100, lost=(1, 4, 18, 21), dtype=torch.bfloat16
    )
    monkeypatch.setattr(gluon_gradient_blocks, "COLUMNS", 128)
    monkeypatch.setattr(gluon_gradient_blocks, "LINES", 64)
    videos, texts = (rows(n, dim, seed, torch.bfloat16) for n, seed in ((1000, 0), (712, 1)))
    lines = gluon_gradient_blocks.lines_of(block)
    expected = gluon_gradient_blocks.expected_gradient(videos, texts, lines, block)
    out = torch.full((stop - start, 768), torch.nan, dtype=torch.float16, device="cuda")
    gpu = traits("cuda")
    monkeypatch.setattr(gluon_gradient, "traits", lambda _: replace(gpu, sm_count=programs))
    gluon_gradient.launch_gradient(
        videos.cuda(),
        texts.cuda(),
        torch.tensor(block.scale, device="cuda"),
        tuple(part if part is None else part.cuda() for part in lines),
        out,
        (start, stop, 1000, 712, -100, 1024 // 64),
        gluon_gradient_blocks.LIFT,
    )
    gluon_gradient_blocks.close(out[:, :712].cpu(), *(part[start:stop] for part in expected))
