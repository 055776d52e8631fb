"""The loss of a whole batch at the memory of a micro-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv
2101.06983), here for all objectives, over several ranks and with the model's noise switched on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from svilm_fast.core.trace_ranges import phase
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.features import Features
from svilm_fast.objectives.total import StepOutput


class Halves(Protocol):
    """The two halves of a step: `SViLM` itself, or an engine that calls them through its hooks."""

    def embed(self, inputs: ModelInputs, /) -> Features:
        """Return the features that global objectives read, and the terms of local ones."""

    def objective(self, features: Features, /) -> StepOutput:
        """Return loss and metrics of a rank's whole batch; collective."""


class CachedStep:
    """One step: compute the loss on cached features, then replay the encoders for backward.

    Building it embeds the batch in micro-batches without a graph and computes the loss on the
    features as leaves; collective, because the global objectives are. `output` holds loss and
    metrics, equal to those of a step without cache. Backward runs only during iteration.

    The global objectives are differentiated with respect to each feature that they read. Local
    objectives run with the encoders in both passes: their loss is the mean over the samples of a
    micro-batch, so the replay weights it by the micro-batch's share of the batch.
    """

    def __init__(self, model: Halves, inputs: ModelInputs, micro_batch: int) -> None:
        """Embed `inputs` (b pairs) in parts of `micro_batch` pairs; the last may be smaller.

        Raises ValueError for a micro-batch below 1.
        """
        self.model = model
        self.parts = inputs.split(micro_batch)
        self.shares = [len(part) / len(inputs) for part in self.parts]
        with torch.no_grad():
            embedded = [model.embed(part) for part in self.parts]
            self.features = Features.joined(embedded, self.shares)
            del embedded
        for leaf in self.features.differentiable():
            leaf.requires_grad_()
        self.output = model.objective(self.features)

    @property
    def has_global_loss(self) -> bool:
        """Whether there is a global loss, which is then the first scalar."""
        return self.output.loss.requires_grad

    def __len__(self) -> int:
        """Number of scalars: the global loss, if any, and one for each micro-batch."""
        return self.has_global_loss + len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        """Scalars whose backward calls add up to the gradient of the loss.

        Call `backward` on each scalar before taking the next one. The first is the global loss,
        which is left out if all objectives are local; its backward gives gradients to the global
        objectives' parameters and to the cached features. Every other scalar belongs to a replayed
        micro-batch: <features, their gradient> plus the local losses. The replay draws the noise of
        the first pass, because noise follows from sample keys.
        """
        if self.has_global_loss:
            yield self.output.loss
        start = 0
        for part, share in zip(self.parts, self.shares, strict=True):
            rows = slice(start, start + len(part))
            with phase("replay"):
                scalar = _surrogate(self.model.embed(part), self.features, rows, share)
            yield scalar
            del scalar  # frees the rest of its graph before the next one is built
            start = rows.stop

    def backward(self) -> None:
        """Add the loss's gradient to every parameter's `.grad`, without an engine."""
        for scalar in self:
            scalar.backward()


def _surrogate(replayed: Features, cached: Features, rows: slice, share: float) -> Tensor:
    """Return the scalar of a micro-batch that holds `share` of the batch's samples."""
    pairs = zip(replayed.differentiable(), cached.differentiable(), strict=True)
    terms = [(found * leaf.grad[rows]).sum() for found, leaf in pairs if leaf.grad is not None]
    if replayed.local is not None:
        terms.append(share * replayed.local.loss)
    return torch.stack(terms).sum()
