"""What only a GPU can show of the resident kernels: clipped tiles, strips, repeats, addresses."""

from __future__ import annotations

import pytest
import torch

from svilm_fast.kernels import ops
from svilm_fast.kernels.grounding import grounding_loss, grounding_scores
from svilm_fast.kernels.grounding.fused import backward, forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
        reason="needs a Hopper GPU",
    ),
]
STRIPS = [1, 2, 3, 100]


@pytest.fixture
def strips(monkeypatch):
    def force(length: int) -> None:
        for module in (forward, backward):
            monkeypatch.setattr(module, "strip_tiles", lambda *_: length)

    return force


def tensors(videos, groups, nouns, dim, offset=0, seed=0):
    """fp16 unit vectors on the GPU; `offset` elements past an aligned address."""
    generator = torch.Generator().manual_seed(seed)

    def unit(count):
        drawn = torch.randn(videos, count, dim, generator=generator)
        flat = torch.nn.functional.normalize(drawn, dim=-1).half().flatten()
        memory = torch.empty(flat.numel() + offset, dtype=torch.float16, device="cuda")
        memory[offset:] = flat.cuda()
        return memory[offset:].view(videos, count, dim)

    mask = torch.rand(videos, nouns, generator=generator).cuda() < 0.7
    scalars = (torch.tensor(value, device="cuda") for value in (7.0, 15.0))
    return unit(groups), unit(nouns), mask, *scalars


def outcomes(inputs, backend="fused", **options):
    groups, nouns, mask, beta, scale = inputs
    leaves = [t.detach().clone().requires_grad_() for t in (beta, scale)]
    leaves = [t.detach().requires_grad_() for t in (groups, nouns)] + leaves
    loss = grounding_loss(*leaves[:2], mask, *leaves[2:], backend=backend, **options)
    scores = grounding_scores(*leaves[:2], mask, leaves[2], backend=backend)
    return [scores.detach(), loss.detach(), *torch.autograd.grad(loss, leaves)]


def exact(inputs):
    groups, nouns, mask, *scalars = inputs
    doubled = (groups.double(), nouns.double(), mask, *(x.double() for x in scalars))
    return outcomes(doubled, "reference")


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 5e-3 * other.norm() + 1e-6


@pytest.mark.parametrize("strip", STRIPS)
@pytest.mark.parametrize("groups", [8, 12, 16, 20, 32, 40, 64])
@pytest.mark.parametrize("videos", [15, 17, 65])
def test_clipped_tiles_and_strips_against_float64(strips, videos, groups, strip):
    strips(strip)
    inputs = tensors(videos, groups, 3, 64)
    assert_close(outcomes(inputs), exact(inputs))


@pytest.mark.parametrize("nouns", [1, 3, 5, 33])
@pytest.mark.parametrize("dim", [16, 64, 160, 192, 256])
def test_widths_and_nouns_against_float64(strips, dim, nouns):
    strips(3)
    inputs = tensors(65, 32, nouns, dim)
    assert_close(outcomes(inputs), exact(inputs))


def test_chunks_against_float64(strips):
    strips(2)
    inputs = tensors(129, 32, 2, 64)
    assert_close(outcomes(inputs, workspace_bytes=1 << 20), exact(inputs))


def test_an_unaligned_address_agrees():
    inputs = tensors(65, 32, 2, 64, offset=1)
    assert_close(outcomes(inputs), exact(inputs))


def test_bits_do_not_depend_on_strips(strips):
    """Scores and the gradients of groups and nouns; those of beta and the scale are sums."""
    inputs = tensors(300, 32, 2, 256)
    found = []
    for strip in STRIPS:
        strips(strip)
        found.append(outcomes(inputs))
    for each in found[1:]:
        for place in (0, 1, 2, 3):
            assert torch.equal(each[place], found[0][place])


def test_fifty_runs_are_bit_equal():
    op = ops()["grounding"]
    made = op.make_inputs(op.cases["paper"], torch.bfloat16, "cuda", 0)
    leaves = [value.requires_grad_() for value in made.values() if value.is_floating_point()]

    def run():
        loss = op.api(**made, backend="fused")
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    first = run()
    for _ in range(49):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
