"""Inter-clip spatial grounding: groups of a video against the nouns of a caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from svilm_fast.kernels.grounding import (
    distributed_grounding_loss,
    initial_parameters,
    similarity_scores,
)
from svilm_fast.objectives.config import GroundingConfig
from svilm_fast.objectives.scale import Scalar, Scale


class SimilarityScores(nn.Module):
    """A similarity other than softmax, with its learned tensors if it has any."""

    def __init__(self, config: GroundingConfig, num_groups: int) -> None:
        super().__init__()
        self.similarity = config.similarity
        initial = initial_parameters(config.similarity, num_groups, config.mlp_hidden)
        self.shapes = {name: value.shape for name, value in initial.items()}
        for name, value in initial.items():
            # DeepSpeed cannot broadcast 0-dim parameters.
            self.register_parameter(name, nn.Parameter(torch.atleast_1d(value)))

    def forward(self, groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor) -> Tensor:
        """Scores [b, c] of groups [b, G, D] with nouns [c, K, D]."""
        parameters = {
            name: getattr(self, name).reshape(shape) for name, shape in self.shapes.items()
        }
        return similarity_scores(self.similarity, groups, nouns, noun_mask, beta, parameters)


class GroundingObjective(nn.Module):
    """Symmetric InfoNCE over noun-to-group similarities; owns its scale and its sharpness beta."""

    def __init__(
        self,
        config: GroundingConfig,
        num_groups: int,
        workspace_bytes: int | None = None,
        *,
        unit: bool = True,
    ) -> None:
        """unit: whether groups and nouns have length 1, without which the kernels may overflow."""
        super().__init__()
        self.backend = None if unit else "reference"
        self.config = config
        self.workspace_bytes = workspace_bytes
        self.scale = Scale(config.scale)
        learnable = config.beta.learnable and config.similarity == "softmax"
        self.beta = Scalar(config.beta.initial) if learnable else None
        self.scores = None
        if config.similarity != "softmax":
            self.scores = SimilarityScores(config, num_groups)

    def forward(
        self, groups: Tensor, nouns: Tensor, noun_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, detached scale and detached beta, all 0-dim.

        Args:
            groups: [b, G, D], unit norm unless told otherwise.
            nouns: [b, K, D], likewise.
            noun_mask: bool [b, K]; a caption without nouns takes no part.
        """
        scale = self.scale(groups)
        beta = self.beta() if self.beta is not None else self._fixed_beta(scale)
        loss = distributed_grounding_loss(
            groups,
            nouns,
            noun_mask,
            beta,
            scale,
            scores=self.scores,
            workspace_bytes=self.workspace_bytes,
            backend=self.backend,
        )
        return loss, scale.detach(), beta.detach()

    def _fixed_beta(self, like: Tensor) -> Tensor:
        return torch.full((), self.config.beta.initial, dtype=like.dtype, device=like.device)
