"""Rows that are not of unit norm: the documented bound of the error."""

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import infonce, infonce_partials
from tests.bars import within

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    # Powers of rows this far from unit norm are out of range and are recomputed.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def documented_bound(scale, norm):
    """README.md, Limits: of log-sums and losses; relative for gradients."""
    return 2.0**-17 + 2.0**-21 * max(scale, scale * norm**2)


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("norm", [0.01, 2.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 10_000.0])
def test_error_against_float64(rows, backend, norm, scale):
    videos = rows(40, 16, 0)
    texts = torch.nn.functional.normalize(videos + 0.8 * rows(40, 16, 1), dim=1)
    inputs = [(norm * videos).float(), (norm * texts).float(), torch.tensor(scale)]
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [value.to(dtype).requires_grad_() for value in inputs]
        path = backend if dtype == torch.float32 else "reference"
        loss = infonce(*leaves, backend=path)
        partials = infonce_partials(*leaves, backend=path)
        results.append(([loss, *partials], torch.autograd.grad(loss, leaves[:2])))
    bound = documented_bound(scale, norm)
    for found, expected in zip(results[0][0], results[1][0]):
        within((found.double() - expected).abs().max(), bound, "log-sum or loss")
    for found, expected in zip(results[0][1], results[1][1]):
        assert found.isfinite().all()
        if bound <= 1:  # above, no digit of a probability is known
            # A saturated softmax has no gradient, and no size to be relative to.
            within((found.double() - expected).norm(), bound * expected.norm() + 1e-6, "gradient")
