"""The steps of a feature sequence as seconds, before and after it is resized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from svilm_fast.data.feature_files import FeatureLayout


@dataclass(frozen=True)
class TimeAxis:
    """Step x lies at `first + x * step` seconds; whole x are the middles of the steps."""

    first: float
    step: float

    @classmethod
    def of(cls, layout: FeatureLayout, vectors: int, steps: int | None = None) -> TimeAxis:
        """The axis of a sequence of `vectors` that is resized to `steps` (None: not resized).

        Resizing interpolates without aligned corners, so that step x shows what lies at vector
        (x + 1/2) * vectors / steps - 1/2.
        """
        ratio = 1.0 if steps is None else vectors / steps
        first = layout.centre(0.5 * ratio - 0.5)
        return cls(float(first), ratio * layout.stride / layout.fps)

    def seconds(self, steps: Any) -> Any:
        """Steps (a number or an array) to seconds."""
        return self.first + steps * self.step

    def steps(self, seconds: Any) -> Any:
        """Seconds to steps: the inverse of `seconds`."""
        return (seconds - self.first) / self.step


def resized(features: Tensor, steps: int) -> Tensor:
    """Interpolate float [T, C] linearly to [steps, C], corners not aligned."""
    if len(features) == steps:
        return features
    rows = interpolate(features.T[None], steps, mode="linear", align_corners=False)[0]
    return rows.T.contiguous()


def padded(features: Tensor, steps: int) -> Tensor:
    """Append zeros to float [T, C] up to [steps, C]."""
    missing = steps - len(features)
    return torch.nn.functional.pad(features, (0, 0, 0, missing)) if missing else features
