"""Initial weights: truncated normal 0.02, zero biases, unit norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STANDARD_DEVIATION = 0.02


def initialise(module: nn.Module) -> None:
    """Fills every parameter under `module` in the order of its registration.

    Norm weights become 1, biases 0, every other matrix or embedding a normal distribution of
    standard deviation 0.02 cut at two deviations (ViT's and BERT's choice). A module with a method
    `initial_values(name)` gives its own where that does not return None.
    """
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            _fill(child, name, parameter)


def _fill(owner: nn.Module, name: str, parameter: Tensor) -> None:
    own = owner.initial_values(name) if hasattr(owner, "initial_values") else None
    if own is not None:
        with torch.no_grad():
            parameter.copy_(own)
    elif isinstance(owner, nn.LayerNorm) and name == "weight":
        nn.init.ones_(parameter)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.trunc_normal_(
            parameter, std=STANDARD_DEVIATION, a=-2 * STANDARD_DEVIATION, b=2 * STANDARD_DEVIATION
        )
