"""`python -m svilm_fast.kernels.self_check`: every op on a small problem against float64.

Prints one JSON object: for each op its relative error, the bar, and where it ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .backend import obstacle
from .grounding import grounding_loss
from .grouping import grouping
from .infonce import infonce
from .temporal import segment_pool, temporal_bce

# Relative root mean square error of fp32 outputs and gradients.
BAR = 1e-4
BATCH, DIM = 24, 32


def _rows(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def problems() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Yield each op's name, the function and its arguments; floating tensors get gradients."""
    mask = torch.arange(BATCH * 2).view(BATCH, 2) % 3 > 0
    yield (
        "infonce",
        infonce,
        {"videos": _rows(0, BATCH, DIM), "texts": _rows(1, BATCH, DIM), "scale": 14.0},
    )
    yield (
        "grounding",
        grounding_loss,
        {
            "groups": _rows(2, BATCH, 8, DIM),
            "nouns": _rows(3, BATCH, 2, DIM),
            "noun_mask": mask,
            "beta": 10.0,
            "scale": 14.0,
        },
    )
    yield (
        "grouping",
        grouping,
        {"queries": 4 * _rows(4, 2, 6, DIM), "tokens": 4 * _rows(5, 2, 40, DIM), "mode": "soft"},
    )
    yield (
        "temporal",
        temporal_bce,
        {"segments": _rows(6, 4, 8, DIM), "paste_mask": torch.arange(32).view(4, 8) % 3 > 0},
    )
    index = torch.arange(40) // 8
    yield "segment_pool", segment_pool, {"tokens": _rows(7, 2, 40, DIM), "segment_index": index}


def evaluate(
    run: Callable[..., Any], arguments: dict[str, Any], dtype: torch.dtype, device: str, path: str
) -> list[Tensor]:
    """Outputs and the gradients of their weighted sum, in float64."""
    call, leaves = dict(arguments), []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            call[name] = value.to(device)
            if value.is_floating_point():
                call[name] = value.to(device, dtype).requires_grad_()
                leaves.append(call[name])
    if run is segment_pool:
        call["num_segments"] = 5
    found = run(**call, backend=path)
    outputs = [found] if isinstance(found, Tensor) else [x for x in found if x.requires_grad]
    total = torch.zeros((), dtype=torch.float64, device=device)
    for output in outputs:
        weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64, device=device)
        total = total + (output.double().flatten() * weights).sum()
    gradients = torch.autograd.grad(total, leaves)
    return [value.detach().double() for value in (*outputs, *gradients)]


def main() -> None:
    """Check every op on the GPU, or on the CPU through Triton's interpreter where it is chosen."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hindrance = obstacle(torch.device(device), allow_interpreter=True)
    path = "fused" if hindrance is None else "reference"
    where = {"cuda": "the GPU", "cpu": "Triton's interpreter"}[device]
    results = {}
    for name, run, arguments in problems():
        found = evaluate(run, arguments, torch.float32, device, path)
        wanted = evaluate(run, arguments, torch.float64, device, "reference")
        errors = [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, wanted)]
        results[name] = {
            "error": max(errors),
            "bar": BAR,
            "where": where if path == "fused" else f"the reference path ({hindrance})",
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
