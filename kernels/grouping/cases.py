"""Shape cases of grouping, their inputs, and the variants that the static table compiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

CASES: dict[str, dict[str, Any]] = {
    "target": {"batch": 256, "tokens": 3136, "width": 768, "groups": 32},
    "large": {"batch": 256, "tokens": 1568, "width": 1024, "groups": 64},
    "small": {"batch": 64, "tokens": 1568, "width": 384, "groups": 32},
    "few_clips": {"batch": 8, "tokens": 3136, "width": 768, "groups": 32},
    "ragged": {"batch": 3, "tokens": 517, "width": 192, "groups": 20},
}


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Arguments of `grouping` for a case; logits have a standard deviation near 1."""
    batch, length, width, groups = (case[key] for key in ("batch", "tokens", "width", "groups"))
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    return {
        "queries": (normal(batch, groups, width) * width**-0.5).to(dtype).requires_grad_(),
        "tokens": normal(batch, length, width).to(dtype).requires_grad_(),
        "group_bias": (0.1 * normal(batch, groups)).requires_grad_(),
        "seeds": torch.arange(batch, device=device) * 7919 + seed,
        "mode": "gumbel",
    }
