"""Gradients of the partial sums keep their digits, however small the upstream gradient."""

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import infonce_partials
from tests.bars import within

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")

BATCH, DIM = 40, 16
# Rounding of the output and of the gradient of the dot products, and steps of the smallest numbers.
# The interpreter converts to bfloat16 wrongly below its smallest normal number.
ROUNDING = {torch.float32: 2e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-30, 1e-38, 1e-39, 1e-44, 0.0])
def test_small_upstream(rows, backend, dtype, size):
    results = []
    for kind in (dtype, torch.float64):
        leaves = [rows(BATCH, DIM, seed, dtype).to(kind) for seed in (0, 1)]
        leaves.append(torch.tensor(5.0, dtype=torch.promote_types(kind, torch.float32)))
        for leaf in leaves:
            leaf.requires_grad_()
        path = backend if kind == dtype else "reference"
        found = infonce_partials(*leaves, backend=path)
        # fp32 numbers, so that both sides start from the same.
        upstream = [(size * torch.linspace(-1, 1, len(part))).to(part.dtype) for part in found]
        results.append(torch.autograd.grad(list(found), leaves, upstream))
    for one, other in zip(*results):
        assert torch.isfinite(one).all()
        # A subnormal number has an absolute rounding: in upstream, and in sums of BATCH products.
        steps = SMALLEST[one.dtype] + BATCH * SMALLEST[torch.float32]
        # The scale's gradient is a sum of both signs of gradients of logits.
        terms = size if one.dim() == 0 else 0.0
        bar = ROUNDING[dtype] * (other.norm() + terms) + steps * one.numel() ** 0.5
        within((one.double() - other).norm(), bar, "gradient")
