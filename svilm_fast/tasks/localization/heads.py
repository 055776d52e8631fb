"""What both heads are given and give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from svilm_fast.core.philox import StepSeeds


@dataclass(frozen=True)
class LocalizationInputs:
    """b videos of T steps.

    features: float [b, T, C]; mask: bool [b, T]. segments: float [n, 2] of each video, in steps;
    labels: int64 [n]. seeds: randomness of the step; None: nothing is random.
    """

    features: Tensor
    mask: Tensor
    segments: Sequence[Tensor]
    labels: Sequence[Tensor]
    seeds: StepSeeds | None = None


class Proposals(NamedTuple):
    """Of one video: segments float [n, 2] in steps; scores float [n]; labels int64 [n]."""

    segments: Tensor
    scores: Tensor
    labels: Tensor


class HeadLosses(NamedTuple):
    """loss: 0-dim; metrics: 0-dim, detached."""

    loss: Tensor
    metrics: dict[str, Tensor]


class LocalizationHead(Protocol):
    """A module that is trained on LocalizationInputs."""

    def losses(self, inputs: LocalizationInputs) -> HeadLosses:
        """The loss of a rank's batch, and metrics."""

    def proposals(self, features: Tensor, mask: Tensor) -> list[Proposals]:
        """The proposals of each video of [b, T, C], in falling order of score."""
