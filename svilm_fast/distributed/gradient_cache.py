"""The loss of a whole batch at the memory of a micro-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv
2101.06983), here for all objectives, over ranks and with the model's noise switched on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from svilm_fast.core.trace_ranges import phase
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.total import Embeddings, StepOutput

# What the encoders' gradient passes through; the other fields are masks and counts.
DIFFERENTIABLE = ("videos", "texts", "groups", "nouns", "segments")


class Halves(Protocol):
    """The two halves of a step: `SViLM` itself, or an engine that calls them through its hooks."""

    def embed(self, inputs: ModelInputs, /) -> Embeddings:
        """What the objectives read of every sample; no sample may see another."""

    def objective(self, embeddings: Embeddings, /) -> StepOutput:
        """Loss and metrics of a rank's whole batch; collective."""


class CachedStep:
    """One step: the loss is taken at the embeddings, then the encoders are run again for backward.

    Building it embeds the batch in micro-batches without a graph and computes the loss on the
    embeddings as leaves; collective, because the objectives are. `output` holds loss and metrics,
    which are those of a step without cache. Whoever does not iterate has spent no backward.
    """

    def __init__(self, model: Halves, inputs: ModelInputs, micro_batch: int) -> None:
        """Embed `inputs` (b pairs) `micro_batch` pairs at once; the last part may be smaller.

        Raises ValueError for a micro-batch below 1.
        """
        self.model = model
        self.parts = inputs.split(micro_batch)
        with torch.no_grad():
            self.embeddings = _leaves(_concatenated([model.embed(part) for part in self.parts]))
        self.output = model.objective(self.embeddings)

    def __len__(self) -> int:
        """How many scalars iteration gives: the loss, then one of each micro-batch."""
        return 1 + len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        """Scalars whose backward calls add up to the gradient of the loss.

        `backward` must be called on each before the next is taken. The first is the loss: it gives
        the objectives' own parameters their gradient, once, and the embeddings theirs. Each other
        one is <embeddings, their gradient> of a micro-batch, embedded again with a graph that ends
        with its backward; its noise is that of the first pass, because it follows from sample keys.
        """
        yield self.output.loss
        start = 0
        for part in self.parts:
            rows = slice(start, start + len(part))
            with phase("replay"):
                scalar = _surrogate(self.model.embed(part), self.embeddings, rows)
            yield scalar
            del scalar  # what is left of its graph goes before the next one grows
            start = rows.stop

    def backward(self) -> None:
        """Add the loss's gradient to every parameter's `.grad`, without an engine."""
        for scalar in self:
            scalar.backward()


def _concatenated(parts: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(*(None if fields[0] is None else torch.cat(fields) for fields in zip(*parts)))


def _leaves(embeddings: Embeddings) -> Embeddings:
    found = {name: getattr(embeddings, name) for name in DIFFERENTIABLE}
    return embeddings._replace(
        **{name: value.requires_grad_() for name, value in found.items() if value is not None}
    )


def _surrogate(replayed: Embeddings, cached: Embeddings, rows: slice) -> Tensor:
    products = []
    for name in DIFFERENTIABLE:
        leaf = getattr(cached, name)
        if leaf is not None and leaf.grad is not None:
            products.append((getattr(replayed, name) * leaf.grad[rows]).sum())
    return torch.stack(products).sum()
