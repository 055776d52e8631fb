"""Initial weights of the towers: of one standard deviation, or scaled by the width."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from svilm_fast.models.config import Initialisation
from svilm_fast.models.transformer import Block

STANDARD_DEVIATION = 0.02


@runtime_checkable
class HasPositions(Protocol):
    """A module with position tables, which it can fill with sines and cosines."""

    def sine_positions(self, name: str) -> Tensor | None:
        """Return the table of parameter `name`, or None where that is no position table."""


def initialise(module: nn.Module, scheme: Initialisation = "fixed") -> None:
    """Fills every parameter under `module` in the order of its registration.

    Norm weights become 1 and biases 0. All other parameters are drawn from normal distributions
    that are cut at two deviations:

    - fixed: of standard deviation 0.02 (ViT's and BERT's choice, at width 768).
    - scaled: a linear map of n inputs has n^-1/2, so that its outputs are as large as its inputs,
      and the last map of both branches of a transformer layer (2 depth n)^-1/2, so that the
      residual stream does not grow with the depth (GPT-2, CLIP). Embeddings of words and learned
      tokens have 1, and position tables are sines and cosines (Vaswani et al. 2017, section 3.5).
    """
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            _fill(child, name, parameter, scheme)
    if scheme == "scaled":
        for child in module.modules():
            if isinstance(child, nn.ModuleList):
                _shrink_branches([block for block in child if isinstance(block, Block)])


def sines(positions: Tensor, channels: int) -> Tensor:
    """Return sines, then cosines [n, channels] of positions [n]; wavelengths 2 pi to 20,000 pi."""
    half = (channels + 1) // 2
    rates = 10_000.0 ** -(torch.arange(half) / half)
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :channels]


def _fill(owner: nn.Module, name: str, parameter: Tensor, scheme: Initialisation) -> None:
    if isinstance(owner, nn.LayerNorm) and name == "weight":
        nn.init.ones_(parameter)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif scheme == "fixed":
        _draw(parameter, STANDARD_DEVIATION)
    elif isinstance(owner, HasPositions) and (table := owner.sine_positions(name)) is not None:
        with torch.no_grad():
            parameter.copy_(table)
    else:
        _draw(parameter, parameter.shape[1] ** -0.5 if name.endswith("weight") else 1.0)


def _draw(parameter: Tensor, deviation: float) -> None:
    nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)


def _shrink_branches(blocks: list[Block]) -> None:
    with torch.no_grad():
        for block in blocks:
            for last in (block.attention.output, block.mlp.contract):
                last.weight.mul_((2 * len(blocks)) ** -0.5)
