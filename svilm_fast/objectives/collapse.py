"""Collapse of self-supervised features: how it is measured, and when a run is warned or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from svilm_fast.core.settings import Factor, Fraction, Settings, Steps
from svilm_fast.models.precision import unit_norm
from svilm_fast.objectives.base import Alarm, Metric

SPREAD, RANK = "feature_spread", "feature_rank"
PANEL = "Spread of the features"
METRICS = {
    SPREAD: Metric("spread", PANEL, "deviation over the batch, 0 to 1"),
    RANK: Metric("rank", "Effective rank of the features", "over the batch"),
}


class CollapseConfig(Settings):
    """When features count as collapsed, and what happens then."""

    action: Literal["warn", "stop", "ignore"] = Field(
        "warn", description="what happens when the features collapse; stop ends the run"
    )
    least_spread: Fraction = Field(
        0.05, description="collapsed below this deviation of unit-norm features over the batch"
    )
    least_rank: Factor = Field(
        1.5, description="collapsed below this effective rank of the features over the batch"
    )
    after_steps: Steps = Field(
        100, description="untrained features are alike: judge only after this many steps"
    )

    def alarm(self, step: int, logged: Mapping[str, float]) -> Alarm | None:
        """Judge the metrics that were logged at a step; None where nothing is wrong."""
        if self.action == "ignore" or step < self.after_steps or SPREAD not in logged:
            return None
        spread, rank = logged[SPREAD], logged[RANK]
        if spread >= self.least_spread and rank >= self.least_rank:
            return None
        return Alarm(
            f"the features have collapsed: deviation {spread:.3g} (at least {self.least_spread:g} "
            f"is expected), effective rank {rank:.3g} (at least {self.least_rank:g}). Lower "
            "optimizer.lr, raise ema.decay, or use target=pixels; collapse.action=ignore goes on",
            stop=self.action == "stop",
        )


@torch.no_grad()
def spread_metrics(states: Tensor) -> dict[str, Tensor]:
    """Measure how different the clips of a rank's batch look to the encoder.

    states: [b, C], of any length. Returns 0-dim numbers, nothing for fewer than two clips:
    `feature_spread`, the root of the summed variances of the unit-norm states (0: all clips look
    alike, 1: they point everywhere), and `feature_rank`, the participation ratio (sum l)^2 / sum
    l^2 of the eigenvalues l of their covariance, at most b - 1.
    """
    if len(states) < 2:
        return {}
    rows = unit_norm(states)
    centred = rows - rows.mean(dim=0)
    variance = centred.square().sum() / len(rows)
    with torch.autocast(states.device.type, enabled=False):
        # The smaller of the two Gram matrices has the same eigenvalues.
        gram = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    rank = gram.diagonal().sum().square() / gram.square().sum().clamp_min(1e-30)
    return {SPREAD: variance.sqrt(), RANK: rank}
