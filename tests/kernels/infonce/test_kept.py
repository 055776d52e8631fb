"""The reference on a CPU keeps a matrix that fits the workspace: the same values as by chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.infonce.options import InfonceOptions
from svilm_fast.kernels.infonce.reference import partials

# Scales at which all log-sums are near the largest logit, and at which one is 40 below.
NARROW, WIDE = 5.0, 300.0
SHAPES = [(6, 6, 0), (5, 9, 3), (9, 5, -3), (4, 6, 9), (3, 4, -2), (1, 1, 0)]


def gradients(inputs: list[Tensor], offset: int, workspace: int, needs=(True, True, True)):
    """Values and gradients of a weighted sum of all partial sums."""
    leaves = [x.clone().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    found = partials(*leaves, InfonceOptions(offset, workspace_bytes=workspace))
    weights = [torch.linspace(0.5, 2.0, len(x), dtype=x.dtype) for x in found]
    total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
    taken = [x for x in leaves if x.requires_grad]
    return [*(x.detach() for x in found), *torch.autograd.grad(total, taken)]


def inputs(rows, m, n, scale, dtype=torch.float64):
    return [rows(m, 8, 0, dtype), rows(n, 8, 1, dtype), torch.tensor(scale, dtype=dtype)]


def depth(made: list[Tensor]) -> float:
    logits = made[2] * made[0] @ made[1].T
    return float(logits.max() - min(logits.logsumexp(1).min(), logits.logsumexp(0).min()))


@pytest.mark.parametrize("scale", [0.0, -3.0, NARROW, WIDE])
@pytest.mark.parametrize(("m", "n", "offset"), SHAPES)
def test_kept_and_computed_again_are_equal(rows, m, n, offset, scale):
    made = inputs(rows, m, n, scale)
    kept, again = (gradients(made, offset, size) for size in (2 * m * n * 8, 2 * m * n * 8 - 1))
    for one, other in zip(kept, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_both_kinds_of_matrices_occur(rows):
    assert depth(inputs(rows, 6, 6, NARROW)) < 40 < depth(inputs(rows, 6, 6, WIDE))


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_each_gradient_alone(rows, needs):
    needs = tuple(map(bool, needs))
    made = inputs(rows, 7, 5, NARROW)
    every = gradients(made, 0, 1 << 20)
    alone = gradients(made, 0, 1 << 20, needs)
    expected = every[:3] + [x for x, need in zip(every[3:], needs, strict=True) if need]
    for one, other in zip(alone, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [NARROW, WIDE])
def test_gradcheck(rows, scale):
    made = [x.requires_grad_() for x in inputs(rows, 4, 6, scale)]
    assert torch.autograd.gradcheck(
        lambda v, t, s: partials(v, t, s, InfonceOptions(1, workspace_bytes=1 << 20)), made
    )


@pytest.mark.parametrize("scale", [14.3, 19.0, 100.0])
def test_float32_is_as_close_to_float64_as_by_chunks(rows, scale):
    """Partners are alike, so losses are small and sums of a row lie far below the largest logit."""
    videos = rows(300, 32, 0)
    texts = torch.nn.functional.normalize(videos + 0.3 * rows(300, 32, 1), dim=1)
    exact = gradients([videos, texts, torch.tensor(scale, dtype=torch.float64)], 0, 1 << 26)
    single = [videos.float(), texts.float(), torch.tensor(scale)]
    kept, again = (gradients(single, 0, size) for size in (1 << 26, 1 << 12))

    def error(found: list[Tensor]) -> list[float]:
        pairs = zip(found, exact, strict=True)
        return [float((x.double() - y).abs().max() / y.abs().max()) for x, y in pairs]

    for one, other in zip(error(kept), error(again), strict=True):
        assert one < 4 * other + 1e-7


def test_what_is_kept_takes_at_most_half_of_the_workspace(rows):
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    made = [x.requires_grad_() for x in inputs(rows, 128, 128, NARROW, torch.float32)]
    for workspace in (2 * 128 * 128 * 4, 2 * 128 * 128 * 4 - 1):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = infonce(*made, workspace_bytes=workspace)
        loss.backward()
        assert (max(saved.values()) == workspace // 2) == (workspace % 2 == 0)


def test_without_gradients_nothing_is_kept(rows):
    with torch.no_grad():
        loss = infonce(*inputs(rows, 16, 16, NARROW), workspace_bytes=1 << 20)
    again = infonce(*inputs(rows, 16, 16, NARROW), workspace_bytes=1 << 10)
    assert loss.item() == pytest.approx(again.item(), rel=1e-13)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_reach_the_loss(rows, value):
    made = inputs(rows, 6, 6, NARROW, torch.float32)
    made[0][2, 3] = value
    found = gradients(made, 0, 1 << 20)
    assert not found[0][2].isfinite()
    assert not found[3].isfinite().all()


def test_the_gradient_may_be_taken_twice(rows):
    """Backward must not change what forward kept."""
    made = [x.requires_grad_() for x in inputs(rows, 6, 6, NARROW)]
    loss = infonce(*made, workspace_bytes=1 << 20)
    first = torch.autograd.grad(loss, made, retain_graph=True)
    again = torch.autograd.grad(loss, made)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
