"""Two objectives that the package does not know: one over tokens, one over the global batch."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from svilm_fast.kernels.collectives import all_reduce_sum, world_size
from svilm_fast.models.flops import product
from svilm_fast.models.precision import masked_mean, project
from svilm_fast.objectives.base import KIND, Metric, Objective, ObjectiveConfig, Scope, register
from svilm_fast.objectives.cost import Cost, Sent
from svilm_fast.objectives.features import Reads, required


class TokenMeanConfig(ObjectiveConfig):
    """Every video token predicts the mean of its clip's tokens."""

    scope: ClassVar[Scope] = "local"
    kind: Literal["token_mean"] = Field("token_mean", description=KIND)
    view: Literal["clean", "blended"] = Field("blended", description="the clips that are read")

    def reads(self):
        return Reads.of(self.view, "tokens")

    def build(self, name, blocks):
        return TokenMean(self, blocks.video.width, name)

    def cost(self, shapes):
        numbers = shapes.local_batch * shapes.tokens * shapes.width
        rows = shapes.global_batch * shapes.tokens
        return Cost(product(rows, shapes.width, shapes.width), kept=4.0 * numbers)

    def metrics(self, name):
        return {f"spread_{name}": Metric(f"{name} spread", "Spread of tokens", name)}


class TokenMean(Objective):
    def __init__(self, config, width, name):
        super().__init__(config, name)
        self.view = config.view
        self.head = nn.Linear(width, width)

    def forward(self, features):
        tokens, mask = features.read(self.view, "tokens"), features.view(self.view).token_mask
        error = project(self.head, tokens) - masked_mean(tokens, mask)[:, None]
        loss = masked_mean(error.square(), mask).mean()
        return loss, {f"spread_{self.name}": tokens.detach().std(dim=1).mean()}


class CenterGapConfig(ObjectiveConfig):
    """The mean video of the global batch lies at the mean caption."""

    kind: Literal["center_gap"] = Field("center_gap", description=KIND)
    view: Literal["clean", "blended"] = Field("clean", description="the clips that are read")

    def reads(self):
        return Reads.of(self.view, "video", texts=True)

    def build(self, name, blocks):
        return CenterGap(self, blocks.model.embed_dim, name)

    def cost(self, shapes):
        size = 4.0 * shapes.embed_dim
        ranks = shapes.world_size > 1
        sent = Sent("difference of the centers", "all_reduce", 2 * size, 2)
        return Cost(kept=size, sent=(sent,) * ranks)


class CenterGap(Objective):
    def __init__(self, config, width, name):
        super().__init__(config, name)
        self.view = config.view
        self.stretch = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, features):
        videos = features.read(self.view, "video")
        gap = (videos - required(features.texts, "texts")).sum(dim=0)
        mean = all_reduce_sum(gap) / (len(videos) * world_size())
        loss = (self.stretch.to(mean.dtype) * mean).square().sum()
        return loss, {}


register(TokenMeanConfig)
register(CenterGapConfig)
