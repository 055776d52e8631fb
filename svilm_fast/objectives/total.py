"""The weighted sum of the active objectives."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from svilm_fast.objectives.base import Objective, Scope
from svilm_fast.objectives.collapse import spread_metrics
from svilm_fast.objectives.config import ModelBlocks
from svilm_fast.objectives.features import Features, LocalTerms


class StepOutput(NamedTuple):
    """Loss (0-dim, with graph) and detached 0-dim metrics."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Objectives(nn.Module):
    """The objectives with a weight above 0, each under its name; the others are not built."""

    def __init__(self, blocks: ModelBlocks) -> None:
        super().__init__()
        blocks.objectives.check(blocks)
        self.active = blocks.objectives.active()
        for name, config in self.active.items():
            self.add_module(name, config.build(name, blocks))

    @property
    def modules_by_name(self) -> dict[str, Objective]:
        """The objectives in the configuration's order."""
        return {name: cast(Objective, part) for name, part in self.named_children()}

    def local_terms(self, features: Features) -> LocalTerms | None:
        """Return loss and metrics of the local objectives; None if there are none."""
        terms, metrics = self._terms("local", features)
        return LocalTerms(torch.stack(terms).sum(), metrics) if terms else None

    def forward(self, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses and the metrics; collectives run on every rank.

        The local objectives have already run: the features contain their terms.
        """
        terms, metrics = self._terms("global", features)
        if features.local is not None:
            terms.append(features.local.loss)
            metrics |= features.local.metrics
        if features.spread is not None:
            metrics |= spread_metrics(features.spread)
        if features.empty_groups is not None:
            metrics["empty_group_rate"] = features.empty_groups.mean()
        return torch.stack(terms).sum(), metrics

    def _terms(self, scope: Scope, features: Features) -> tuple[list[Tensor], dict[str, Tensor]]:
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for name, objective in self.modules_by_name.items():
            config = self.active[name]
            if config.scope == scope:
                loss, extra = objective(features)
                terms.append(config.weight * loss)
                metrics |= {f"loss_{name}": loss.detach()} | extra
        return terms, metrics
