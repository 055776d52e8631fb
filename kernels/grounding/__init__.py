"""Inter-clip spatial grounding: scores of every caption's nouns with every video's groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from svilm_fast.kernels.registry import Op, kernel_sources, register

from . import reference
from .api import grounding_loss, grounding_scores, matrix_infonce
from .cost import grounding_cost
from .distributed import distributed_grounding_loss
from .similarities import (
    SIMILARITIES,
    initial_parameters,
    parameter_shapes,
    similarity_scores,
)
from .variants import VARIANTS

__all__ = [
    "SIMILARITIES",
    "distributed_grounding_loss",
    "grounding_loss",
    "grounding_scores",
    "initial_parameters",
    "matrix_infonce",
    "parameter_shapes",
    "similarity_scores",
]

CASES = {
    "demo": {"batch": 16, "groups": 8, "nouns": 2, "dim": 64},
    "paper": {"batch": 1024, "groups": 32, "nouns": 2, "dim": 256},
    "large": {"batch": 4096, "groups": 32, "nouns": 4, "dim": 256},
    "ragged": {"batch": 1000, "groups": 12, "nouns": 3, "dim": 208},
    "wide": {"batch": 2048, "groups": 64, "nouns": 4, "dim": 512},
}


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `grounding_loss`: unit vectors, one caption in eight without nouns."""
    generator = torch.Generator().manual_seed(seed)
    batch, nouns, dim = case["batch"], case["nouns"], case["dim"]

    def unit(*shape: int) -> torch.Tensor:
        vectors = torch.randn(shape, generator=generator)
        return F.normalize(vectors, dim=-1).to(device=device, dtype=dtype).requires_grad_()

    present = torch.randint(1, nouns + 1, (batch, 1), generator=generator)
    present[3::8] = 0
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "groups": unit(batch, case["groups"], dim),
        "nouns": unit(batch, nouns, dim),
        "noun_mask": (torch.arange(nouns) < present).to(device),
        "beta": torch.tensor(10.0, dtype=scalar, device=device, requires_grad=True),
        "scale": torch.tensor(20.0, dtype=scalar, device=device, requires_grad=True),
    }


register(
    Op(
        name="grounding",
        api=grounding_loss,
        reference=reference.grounding_loss,
        cost=grounding_cost,
        cases=CASES,
        make_inputs=make_inputs,
        variants=VARIANTS,
        kernel_paths=kernel_sources(Path(__file__).parent),
    )
)
