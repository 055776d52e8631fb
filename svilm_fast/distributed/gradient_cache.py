"""The loss of a whole batch at the memory of a micro-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv
2101.06983), here for all objectives, over ranks and with the model's noise switched on.
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
        """What the global objectives read of every sample, and the terms of the local ones."""

    def objective(self, features: Features, /) -> StepOutput:
        """Loss and metrics of a rank's whole batch; collective."""


class CachedStep:
    """One step: the loss is taken at the features, then the encoders are run again for backward.

    Building it embeds the batch in micro-batches without a graph and computes the loss on the
    features as leaves; collective, because the global objectives are. `output` holds loss and
    metrics, which are those of a step without cache. Whoever does not iterate has spent no
    backward.

    What the global objectives read is differentiated here, feature by feature. The local ones run
    with the encoders in both passes: their loss is the mean over the samples of a micro-batch, so a
    replay adds it weighted by the micro-batch's share of the batch.
    """

    def __init__(self, model: Halves, inputs: ModelInputs, micro_batch: int) -> None:
        """Embed `inputs` (b pairs) `micro_batch` pairs at once; the last part may be smaller.

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
        """Whether the first scalar is the global objectives' loss; there may be none."""
        return self.output.loss.requires_grad

    def __len__(self) -> int:
        """How many scalars iteration gives: the loss, then one of each micro-batch."""
        return self.has_global_loss + len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        """Scalars whose backward calls add up to the gradient of the loss.

        `backward` must be called on each before the next is taken. The first is the loss: it gives
        the global objectives' own parameters their gradient, once, and the features theirs; with
        local objectives alone it is left out. Each other one is <features, their gradient> of a
        micro-batch, embedded again with a graph that ends with its backward, plus the local losses;
        its noise is that of the first pass, because it follows from sample keys.
        """
        if self.has_global_loss:
            yield self.output.loss
        start = 0
        for part, share in zip(self.parts, self.shares, strict=True):
            rows = slice(start, start + len(part))
            with phase("replay"):
                scalar = _surrogate(self.model.embed(part), self.features, rows, share)
            yield scalar
            del scalar  # what is left of its graph goes before the next one grows
            start = rows.stop

    def backward(self) -> None:
        """Add the loss's gradient to every parameter's `.grad`, without an engine."""
        for scalar in self:
            scalar.backward()


def _surrogate(replayed: Features, cached: Features, rows: slice, share: float) -> Tensor:
    """share: of the batch's samples, in this micro-batch."""
    pairs = zip(replayed.differentiable(), cached.differentiable(), strict=True)
    terms = [(found * leaf.grad[rows]).sum() for found, leaf in pairs if leaf.grad is not None]
    if replayed.local is not None:
        terms.append(share * replayed.local.loss)
    return torch.stack(terms).sum()
