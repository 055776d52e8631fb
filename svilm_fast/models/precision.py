"""Arithmetic that must not run below fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_fp32(tensor: Tensor) -> Tensor:
    """fp16 and bf16 become fp32; fp32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_norm(tensor: Tensor) -> Tensor:
    """L2-normalised over the last axis, in fp32 or float64; the zero vector stays zero."""
    with torch.autocast(tensor.device.type, enabled=False):
        return F.normalize(at_least_fp32(tensor), dim=-1)


def project(layer: nn.Linear | nn.LayerNorm, tensor: Tensor) -> Tensor:
    """`layer(tensor)` where the tensor may be fp32 although the layer's parameters are bf16."""
    return layer(tensor.to(layer.weight.dtype))


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over axis 1 of [b, L, C] where mask [b, L] holds (None: everywhere), at least fp32."""
    tokens = at_least_fp32(tokens)
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


@dataclass(frozen=True)
class ElementSizes:
    """Bytes of an element: of parameters, the residual stream and operands of products."""

    parameter: int
    stream: int
    compute: int

    @property
    def copies_weights(self) -> bool:
        """Whether products use copies of the weights, which are kept for backward."""
        return self.parameter != self.compute


# By `training.precision`.
ELEMENT_SIZES = {
    "fp32": ElementSizes(4, 4, 4),
    "bf16_autocast": ElementSizes(4, 4, 2),
    "bf16": ElementSizes(2, 2, 2),
}
