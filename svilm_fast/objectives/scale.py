"""Learnable scalars that are clamped in forward and never leave fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from svilm_fast.core.settings import Factor, Settings
from svilm_fast.models.precision import at_least_fp32


class ScaleConfig(Settings):
    """A factor on similarities, exp(parameter) clamped in forward."""

    initial: Factor = Field(1 / 0.07, description="factor at the start")
    minimum: Factor = Field(1.0, description="a learned factor is not below it")
    maximum: Factor = Field(100.0, description="a learned factor is not above it")
    learnable: bool = Field(True, description="false: the factor stays as it starts")

    @model_validator(mode="after")
    def _ordered(self) -> ScaleConfig:
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                f"scale needs minimum <= initial <= maximum, got {self.minimum}, "
                f"{self.initial}, {self.maximum}"
            )
        return self


class Scalar(nn.Module):
    """One learnable number, read in fp32 (float64 for a float64 model).

    `read_master`, when set, returns the fp32 value that an engine keeps beside a bf16 parameter:
    forward uses it, and the gradient still goes to the parameter.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        # Shape [1]: DeepSpeed broadcasts parameters viewed as bytes, which a 0-dim one cannot be.
        self.scale_value = nn.Parameter(torch.tensor([float(initial)]))
        self.read_master: Callable[[], Tensor] | None = None

    def forward(self) -> Tensor:
        """0-dim."""
        value = at_least_fp32(self.scale_value).reshape(())
        if self.read_master is None:
            return value
        master = self.read_master().detach().to(value.device, value.dtype)
        return master.reshape(()) + (value - value.detach())


class Scale(nn.Module):
    """exp of a learnable logarithm, between a minimum and a maximum.

    The clamp is part of forward: an engine's master copy would undo a clamp of the parameter.
    Beyond the bounds the gradient passes where a descent step leads back, so that the scale cannot
    get stuck there.
    """

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__()
        self.bounds = (math.log(config.minimum), math.log(config.maximum))
        self.initial = config.initial
        self.logarithm = Scalar(math.log(config.initial)) if config.learnable else None

    def forward(self, like: Tensor) -> Tensor:
        """0-dim, on the device of `like` and in its dtype, but at least fp32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self.logarithm is None:
            return torch.full((), self.initial, dtype=dtype, device=like.device)
        clamped: Tensor = _ReturningClamp.apply(self.logarithm(), *self.bounds)
        return clamped.to(dtype).exp()


class _ReturningClamp(torch.autograd.Function):
    """Clamp whose gradient passes inside the bounds, and outside where descent moves inwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value < low, value > high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        outwards = (below & (gradient > 0)) | (above & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None
