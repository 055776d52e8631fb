"""The reference runs on tensors without values: a `FakeTensorMode` sizes a model without memory."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from svilm_fast.kernels.registry import ops


def call(op, inputs):
    """Shape and dtype of the outputs and of the gradients of the floating inputs."""
    given = {
        name: value.requires_grad_() if _floating(value) else value
        for name, value in inputs.items()
    }
    found = op.api(**given, backend="reference")
    outputs = found if isinstance(found, tuple) else (found,)
    sum(value.float().sum() for value in outputs if value.requires_grad).backward()
    gradients = [value.grad for value in given.values() if _floating(value)]
    return [(list(value.shape), value.dtype) for value in (*outputs, *gradients)]


def _floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ops()))
def test_shapes_without_values_are_those_with(name, dtype):
    op = ops()[name]
    inputs = op.make_inputs(op.sizes.tiny, dtype, "cpu", 0)
    with FakeTensorMode() as mode:
        copies = {
            key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
        found = call(op, copies)
    assert found == call(op, inputs)
