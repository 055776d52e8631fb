"""Fused output and gradients against the float64 oracle, on every small case of every op."""

import pytest
import torch

from svilm_fast.bench.suites.proof import first_output, in_precision, leaves, relative_rms
from svilm_fast.kernels.registry import ops

# Relative RMS: little more than the rounding of the output's dtype.
BARS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2e-5}
# Gradients of a mean over thousands of pairs are below float16's normal range; the bar applies to
# those that loss scaling brings into it.
LOSS_SCALE = 1024.0
# A token whose two best groups differ by a rounding may be assigned to either. Among very many
# tokens some are, and a single one exceeds the bar.
MOST_DECISIONS = 1 << 13


def _is_small(shape):
    decisions = shape["batch"] * shape["tokens"] if {"tokens", "groups"} <= shape.keys() else 0
    largest = max(v for v in shape.values() if isinstance(v, int))
    return largest <= 4096 and decisions <= MOST_DECISIONS


CASES = [
    (name, case)
    for name, op in ops().items()
    for case, shape in op.cases.items()
    if _is_small(shape)
]


@pytest.mark.parametrize("dtype", list(BARS), ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_fused_equals_the_oracle(make, name, case, dtype):
    op, inputs, wanted = make(name, case, dtype)
    output = first_output(op.api(**inputs, backend="fused"))
    exact = in_precision(inputs, torch.float64)
    exact_leaves = leaves(exact)
    oracle = first_output(op.reference(**exact))
    assert relative_rms(output, oracle) <= BARS[output.dtype]
    upstream = torch.linspace(0.5, 1.5, output.numel(), device=output.device).view(output.shape)
    if not output.dim():
        upstream *= LOSS_SCALE
    gradients = torch.autograd.grad(output, wanted, upstream.to(output.dtype))
    exact_gradients = torch.autograd.grad(oracle, exact_leaves, upstream.to(output.dtype).double())
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        bar = BARS[gradient.dtype] if gradient.dim() else 1e-3
        assert relative_rms(gradient, exact_gradient) <= bar
