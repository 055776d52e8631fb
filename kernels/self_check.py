"""`python -m svilm_fast.kernels.self_check`: compares every op at small sizes with float64.

Prints one JSON object with the relative error of each op, its limit, and where the op ran.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .backend import obstacle
from .registry import Op, ops

# Limit of the relative root mean square error of fp32 outputs and gradients.
BAR = 1e-4


def _evaluate(op: Op, inputs: dict[str, Any], dtype: torch.dtype, path: str) -> list[Tensor]:
    """Outputs and the gradients of their weighted sum, in float64."""
    call, leaves = dict(inputs), []
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            call[name] = value.detach().to(dtype).requires_grad_()
            leaves.append(call[name])
    found = op.api(**call, backend=path)
    outputs = [found] if isinstance(found, Tensor) else [x for x in found if x.requires_grad]
    # The weights differ, so that a lost part of a gradient changes the result.
    total = torch.stack(
        [
            (x.double().flatten() * torch.linspace(1, 2, x.numel(), device=x.device)).sum()
            for x in outputs
        ]
    ).sum()
    gradients = torch.autograd.grad(total, leaves)
    return [value.detach().double() for value in (*outputs, *gradients)]


def error_of(op: Op, device: str, path: str) -> float:
    """Largest relative error among the outputs and gradients of a path in float32."""
    # Drawn on the CPU, so that the inputs are the same on every device: other inputs could hold
    # two scores that are nearly equal.
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in op.make_inputs(op.sizes.small, torch.float32, "cpu", 0).items()
    }
    found = _evaluate(op, inputs, torch.float32, path)
    wanted = _evaluate(op, inputs, torch.float64, "reference")
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, wanted))


def main() -> None:
    """Check every op on the GPU, or on the CPU in Triton's interpreter if it is enabled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hindrance = obstacle(torch.device(device), allow_interpreter=True)
    path = "fused" if hindrance is None else "reference"
    where = {"cuda": "the GPU", "cpu": "Triton's interpreter"}[device]
    if hindrance is not None:
        where = f"the reference path ({hindrance})"
    results = {
        name: {"error": error_of(op, device, path), "bar": BAR, "where": where}
        for name, op in ops().items()
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
