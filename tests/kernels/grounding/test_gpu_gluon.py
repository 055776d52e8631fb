"""The compiled Gluon kernel: against float64, over strips and chunks, in a CUDA graph, repeated.

A file of its own, because `make gpu` runs each file in a process: a kernel that hangs takes no
results of the plain kernels with it.
"""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels import ops
from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.grounding import grounding_loss, grounding_scores
from svilm_fast.kernels.grounding.fused import backward
from svilm_fast.kernels.launch import compiled_kernels

pytestmark = pytest.mark.gpu


@pytest.fixture
def gluon():
    """Calls take the Gluon kernel; the test fails if none was started."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Gluon kernels are for compute capability (9, 0)")
    with use_backend("gluon"), compiled_kernels() as kernels:
        yield
    assert "gluon_gradient_kernel" in {kernel.metadata.name for kernel in kernels}


def tensors(videos, groups, nouns, dim, seed=0):
    """fp16 unit vectors on the GPU, with captions without a noun."""
    generator = torch.Generator().manual_seed(seed)

    def unit(count):
        drawn = torch.randn(videos, count, dim, generator=generator)
        return normalize(drawn, dim=-1).half().cuda()

    mask = torch.rand(videos, nouns, generator=generator).cuda() < 0.7
    scalars = (torch.tensor(value, device="cuda") for value in (7.0, 15.0))
    return unit(groups), unit(nouns), mask, *scalars


def outcomes(inputs, path="fused", **options):
    """The loss and its gradients, and the gradients of the scores."""
    groups, nouns, mask, beta, scale = inputs
    leaves = [t.detach().clone().requires_grad_() for t in (groups, nouns, beta, scale)]
    loss = grounding_loss(*leaves[:2], mask, *leaves[2:], backend=path, **options)
    found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    scores = grounding_scores(*leaves[:2], mask, leaves[2], backend=path, **options)
    upstream = torch.linspace(-1, 1, scores.numel(), device="cuda").view(scores.shape)
    return found + list(torch.autograd.grad((scores * upstream).sum(), leaves[:3]))


def exact(inputs):
    groups, nouns, mask, *scalars = inputs
    doubled = (groups.double(), nouns.double(), mask, *(x.double() for x in scalars))
    return outcomes(doubled, "reference")


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 5e-3 * other.norm() + 1e-6


# Every number of groups, of nouns and every width is compiled anew, so the tests take samples.
@pytest.mark.parametrize(
    ("videos", "groups", "strip"),
    [
        (15, 8, 1), (17, 12, 2), (65, 16, 3), (15, 20, 100), (15, 32, 1), (17, 32, 2),
        (65, 32, 3), (65, 32, 100), (17, 40, 2), (65, 64, 3),
    ],
)  # fmt: skip
def test_clipped_tiles_and_strips_against_float64(gluon, monkeypatch, videos, groups, strip):
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: strip)
    inputs = tensors(videos, groups, 3, 64)
    assert_close(outcomes(inputs), exact(inputs))


@pytest.mark.parametrize(
    ("dim", "nouns"), [(16, 1), (32, 5), (64, 33), (160, 3), (192, 5), (256, 1), (256, 33)]
)
def test_widths_and_nouns_against_float64(gluon, monkeypatch, dim, nouns):
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: 3)
    inputs = tensors(65, 32, nouns, dim)
    assert_close(outcomes(inputs), exact(inputs))


def test_chunks_against_float64(gluon, monkeypatch):
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: 2)
    inputs = tensors(129, 32, 2, 64)
    assert_close(outcomes(inputs, workspace_bytes=1 << 20), exact(inputs))


def test_a_graph_replays_with_new_data(gluon, capture):
    groups, nouns, mask, beta, scale = tensors(300, 32, 2, 256)
    leaves = [t.requires_grad_() for t in (groups, nouns, beta, scale)]

    def step():
        loss = grounding_loss(groups, nouns, mask, beta, scale)
        return loss, *torch.autograd.grad(loss, leaves)

    first, captured, graph = capture(step)
    with torch.no_grad():
        beta.fill_(12.0)
        groups.copy_(tensors(300, 32, 2, 256, seed=7)[0])
    graph.replay()
    assert not torch.equal(captured[0], first[0])
    for found, expected in zip(captured, step()):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", ["paper", "ragged"])
def test_fifty_runs_are_bit_equal_and_plain_kernels_agree(gluon, case):
    op = ops()["grounding"]
    made = op.make_inputs(op.cases[case], torch.bfloat16, "cuda", 0)
    leaves = [value for value in made.values() if value.is_floating_point()]

    def run():
        loss = op.api(**made)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    first = run()
    for _ in range(49):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    with use_backend("fused"):
        for found, other in zip(first, run(), strict=True):
            assert (found.double() - other.double()).norm() <= 5e-3 * other.double().norm()
