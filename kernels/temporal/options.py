"""The options of a `temporal_bce` call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Loss = Literal["bce", "mse"]
LOSSES = ("bce", "mse")


@dataclass(frozen=True)
class TemporalOptions:
    """The arguments of `api.temporal_bce` with the same names."""

    segment_mask: Tensor | None = None
    temperature: float = 0.1
    loss: Loss = "bce"

    def packed(self) -> tuple[Tensor | None, float, str]:
        """The options as arguments of an operator; `TemporalOptions(*packed)` is the inverse."""
        return self.segment_mask, self.temperature, self.loss
