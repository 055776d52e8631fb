"""Collapse of self-supervised features: how it is measured, and when a run is warned or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from svilm_fast.core.settings import Factor, Fraction, Settings, Steps
from svilm_fast.models.precision import at_least_fp32, masked_mean, unit_norm
from svilm_fast.objectives.base import Alarm, Metric

SPREAD, RANK = "feature_spread", "feature_rank"
PANEL = "Spread of the features"
METRICS = {
    SPREAD: Metric("spread", PANEL, "cosine within a clip less that between clips"),
    RANK: Metric("rank", "Effective rank of the features", "over the batch"),
}
# Fewer clips have a low rank whatever the encoder does: two always lie on a line.
FEWEST_FOR_RANK = 8


class CollapseConfig(Settings):
    """When features count as collapsed, and what happens then.

    Bounds and measures were compared with two runs of `vidrop_demo` (docs/vidrop.md).
    """

    action: Literal["warn", "stop", "ignore"] = Field(
        "warn", description="what happens when the features collapse; stop ends the run"
    )
    least_spread: Fraction = Field(
        0.0025,
        description="collapsed if two halves of a clip's tokens are not by this cosine more alike "
        "than those of different clips",
    )
    least_rank: Factor = Field(
        1.5, description="collapsed below this effective rank of the features over the batch"
    )
    after_steps: Steps = Field(
        100, description="untrained features are alike: judge only after this many steps"
    )

    def alarm(self, step: int, logged: Mapping[str, float], remedy: str) -> Alarm | None:
        """Judge the metrics that were logged at a step; None where nothing is wrong.

        remedy: what could help, for the message.
        """
        if self.action == "ignore" or step < self.after_steps:
            return None
        bounds = {SPREAD: self.least_spread, RANK: self.least_rank}
        low = [
            f"{name} {logged[name]:.3g} (at least {least:g} is expected)"
            for name, least in bounds.items()
            if name in logged and not logged[name] >= least
        ]
        if not low:
            return None
        return Alarm(
            f"the features have collapsed: {', '.join(low)}. {remedy}; collapse.action=ignore goes "
            "on",
            stop=self.action == "stop",
        )


def halves(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the even and of the odd tokens of each clip, [b, 2, C], detached.

    tokens: [b, n, C]; mask: bool [b, n], true first; None: all. A half without tokens is zero.
    """
    tokens = tokens.detach()
    kept = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    return torch.stack([masked_mean(tokens[:, n::2], kept[:, n::2]) for n in (0, 1)], dim=1)


@torch.no_grad()
def spread_metrics(states: Tensor) -> dict[str, Tensor]:
    """Measure how different the clips of a rank's batch look to the encoder.

    states: [b, 2, C], the `halves` of the clips. Returns 0-dim numbers, nothing for fewer than two
    clips. `feature_spread`: the mean cosine of both halves of a clip, less that of halves of
    different clips. It is 0 if all clips look alike, and also if a token only says where it is:
    then halves differ by the drawn places, within a clip as much as between clips (not so for
    `tube`, which draws the same places at all times). It has no bias: the number of clips does not
    matter. `feature_rank`, for 8 clips or more: the participation
    ratio (sum l)^2 / sum l^2 of the eigenvalues l of the covariance of the clips, at most b - 1.
    """
    clips = len(states)
    if clips < 2:
        return {}
    rows = unit_norm(states)
    with torch.autocast(states.device.type, enabled=False):
        within = (rows[:, 0] * rows[:, 1]).sum()
        every = rows[:, 0].sum(0) @ rows[:, 1].sum(0)
        found = {SPREAD: within / clips - (every - within) / (clips * (clips - 1))}
        if clips >= FEWEST_FOR_RANK:
            centred = unit_norm(at_least_fp32(states).sum(dim=1))
            centred = centred - centred.mean(dim=0)
            # The smaller of the two Gram matrices has the same eigenvalues.
            gram = centred @ centred.T if clips < centred.shape[1] else centred.T @ centred
            total = gram.diagonal().sum().square()
            found[RANK] = total / gram.square().sum().clamp_min(1e-30)
    return found
