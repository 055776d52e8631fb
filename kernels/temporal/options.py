"""What a call of `temporal_bce` says besides its segments and its paste mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Loss = Literal["bce", "mse"]
LOSSES = ("bce", "mse")


@dataclass(frozen=True)
class TemporalOptions:
    """Attributes as the arguments of `api.temporal_bce`."""

    segment_mask: Tensor | None = None
    temperature: float = 0.1
    loss: Loss = "bce"

    def packed(self) -> tuple[Tensor | None, float, str]:
        """As the operators' schemas take them; `TemporalOptions(*packed)` is the way back."""
        return self.segment_mask, self.temperature, self.loss
