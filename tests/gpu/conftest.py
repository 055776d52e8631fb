"""Every test here needs a GPU. Inputs come from the registry, so new ops are included."""

import pytest
import torch

from svilm_fast.bench.suites.proof import leaves
from svilm_fast.kernels.registry import ops


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.fail("`-m gpu` was given, but PyTorch finds no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def make(device):
    """make(op, case, dtype) -> (op, inputs, differentiable leaves) on the GPU."""

    def build(name, case, dtype):
        op = ops()[name]
        inputs = op.make_inputs(op.cases[case], dtype, device, 0)
        return op, inputs, leaves(inputs)

    return build
