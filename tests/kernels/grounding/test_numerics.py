"""The fused path against a float64 oracle with absolute bars, outputs poisoned beforehand."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import grounding_scores
from tests.bars import within

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    # What overflows is masked; numpy warns all the same.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def test_every_regime_holds_its_bars(regime_name, numerics, poisoned_memory):
    assert list(numerics([regime_name])) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", range(8, 1025, 40))
def test_every_kind_of_width(failures_at, poisoned_memory, dim, dtype):
    assert failures_at(dim=dim, dtype=dtype, groups=12, nouns=3, counts=(3, 0, 1)) == []


@pytest.mark.parametrize("length", [0.5, 1.5, 3.0, 100.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_vectors_of_any_length_are_right(length, sign, dtype):
    generator = torch.Generator().manual_seed(0)
    nouns = normalize(torch.randn(9, 1, 16, generator=generator), dim=-1)
    # All dots of a noun with the groups of its own video have one sign: all powers are small, or
    # all are large.
    groups = sign * nouns + 0.05 * torch.randn(9, 8, 16, generator=generator)
    mask, beta = torch.ones(9, 1, dtype=torch.bool), torch.tensor(60.0)
    inputs = (length * groups).to(dtype), nouns.to(dtype)
    upstream = torch.randn(9, 9, generator=generator)
    outcomes = []
    for kind, backend in ((dtype, "fused"), (torch.float64, "reference")):
        leaves = [value.to(kind).requires_grad_() for value in inputs]
        scores = grounding_scores(*leaves, mask, beta, backend=backend)
        outcomes.append((scores, torch.autograd.grad(scores, leaves, upstream.to(scores.dtype))))
    (found, gradients), (expected, truths) = outcomes
    # A product of this size is known to 2^-24 of it, and beta turns that into shares of groups.
    bar = 2e-6 * length * (1 + 60 * length)
    within((found.double() - expected).abs().max(), bar, "scores")
    unit = {torch.float16: 2.0**-9, torch.float32: 2e-5}[dtype] * (1 + length)
    for one, other in zip(gradients, truths):
        within((one.double() - other).norm(), unit * other.norm(), "gradient")
