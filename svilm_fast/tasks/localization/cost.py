"""What a localization head costs, for plans: FLOPs, and bytes that are kept for backward.

Of one video of `length` steps, following the code of the heads as autocast runs it on a GPU: inputs
of products are kept in the type of products, and what norms and branches read in fp32.
"""

from __future__ import annotations

from itertools import pairwise

from svilm_fast.models.activation_cost import FP32
from svilm_fast.models.flops import Flops, attention, product
from svilm_fast.models.precision import ElementSizes
from svilm_fast.objectives.features import Reads
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.tasks.localization.gtad import CONV_GROUPS, input_groups
from svilm_fast.tasks.localization.settings import (
    ActionFormerSettings,
    GtadSettings,
    LocalizationSettings,
)

INT64 = 8


def localization_cost(
    settings: LocalizationSettings, classes: int, precision: ElementSizes
) -> HeadCost:
    """Return the cost of a video; no tower runs, the loader reads stored features."""
    width, steps = settings.width, settings.length
    stored = FP32 * width * steps
    if settings.head == "gtad":
        head = settings.gtad
        sizes = _GtadSizes(head, width, steps, precision)
        return HeadCost(
            Reads(), sizes.flops, sizes.kept, kept_once=sizes.kept_once, stored_bytes=stored
        )
    former = _FormerSizes(settings.actionformer, width, steps, classes, precision)
    return HeadCost(Reads(), former.flops, former.kept, stored_bytes=stored)


class _FormerSizes:
    """The ActionFormer-class head."""

    def __init__(
        self,
        head: ActionFormerSettings,
        width: int,
        steps: int,
        classes: int,
        precision: ElementSizes,
    ) -> None:
        self.head, self.classes = head, classes
        self.compute, self.stream = precision.compute, precision.stream
        self.sizes = [width] + [head.width] * head.embedding_layers
        self.steps = [steps // 2**level for level in range(head.levels)]
        # Steps before and after each block, and whether it attends to all of them.
        levels = list(pairwise(self.steps))
        blocks = [(steps, steps)] * head.stem_layers + levels
        last = len(blocks) - 1 if head.levels > 1 else None
        self.blocks = [
            (before, after, after if place == last else head.window)
            for place, (before, after) in enumerate(blocks)
        ]

    @property
    def flops(self) -> Flops:
        width, total = self.head.width, Flops()
        for number, (inputs, outputs) in enumerate(pairwise(self.sizes)):
            total += product(self.steps[0], 3 * inputs, outputs, input_gradient=number > 0)
        for _, after, seen in self.blocks:
            total += (product(after, 3, width) + product(after, width, width)) * 3
            total += attention(after, seen, width) + product(after, width, width)
            total += product(after, width, 4 * width) * 2
        points, inner = sum(self.steps), self.head.head_layers - 1
        total += product(points, 3 * width, width) * (2 * inner)
        return total + product(points, 3 * width, self.classes + 2)

    @property
    def kept(self) -> float:
        compute, stream, width = self.compute, self.stream, self.head.width
        found = 0.0
        # The masked input of a convolution, the input of its norm, the output of the ReLU.
        for inputs, outputs in pairwise(self.sizes):
            found += self.steps[0] * (inputs * compute + outputs * 2 * stream)
        for before, after, seen in self.blocks:
            found += self._block(before, after, seen)
        points, inner = sum(self.steps), self.head.head_layers - 1
        found += self.steps[-1] * width * stream
        found += 2 * points * width * (inner * (compute + 2 * stream) + compute)
        # Eight tensors of the focal loss: logits, shares, targets, weights and their products.
        return found + points * 8 * FP32 * self.classes

    def _block(self, before: int, after: int, seen: int) -> float:
        compute, stream, width = self.compute, self.stream, self.head.width
        # The input of the norm, and a masked copy of its output for query, key and value.
        found = before * width * (stream + 3 * compute)
        if before != after:  # max pooling: its input and the places of the maxima
            found += before * width * stream + after * width * INT64
        # Norms and projections of query, key and value; the query.
        found += after * width * (3 * (stream + compute) + compute)
        if seen == after:  # attention to all: key, value, result
            found += after * (width * 3 * compute + self.head.heads * FP32)
        else:  # the window of every step, and its softmax
            cast = compute if compute < FP32 else 0
            found += after * seen * (width * 2 * compute + self.head.heads * (FP32 + cast))
            found += after * width * compute
        # Branch; input of the second norm; inputs of the MLP's products, before the GELU; branch.
        return found + after * width * (stream + (1 + 1 + 4 + 4 + 1) * compute)


class _GtadSizes:
    """The G-TAD-class head."""

    def __init__(self, head: GtadSettings, width: int, steps: int, precision: ElementSizes) -> None:
        self.head, self.width, self.steps = head, width, steps
        self.compute, self.cast = precision.compute, precision.compute < precision.stream
        self.near = min(head.neighbours, steps)

    @property
    def flops(self) -> Flops:
        head, steps, inner = self.head, self.steps, self.head.width
        total = product(
            steps, 3 * self.width // input_groups(self.width), inner, input_gradient=False
        )
        edges = steps * self.near
        block = product(steps, inner, inner) * 2
        block += product(steps, 3 * inner // CONV_GROUPS, inner)
        block += product(edges, 2 * inner, inner) + product(edges, inner, inner)
        block += product(edges, inner // CONV_GROUPS, inner)
        # Distances of all pairs of steps have no gradient.
        block += Flops(product(steps, inner, steps).forward)
        total += block * 3 + product(steps, inner, 2)
        total += product(steps, inner, 2 * head.samples * head.hidden)
        total += product(steps**2, 9 * head.hidden, head.hidden) * 2
        return total + product(steps**2, head.hidden, 2)

    @property
    def kept(self) -> float:
        head, steps, compute, inner = self.head, self.steps, self.compute, self.head.width
        found = self.cast * self.width * steps * compute + inner * steps * compute
        # Two ReLUs, the maximum over the neighbours and the output; at every neighbour the joined
        # vectors, two ReLUs and the last product.
        block = inner * steps * 4 * compute
        block += inner * steps * self.near * (2 + 2 + 1) * compute + steps * self.near * INT64
        found += 3 * block + 3 * head.hidden * steps**2 * compute
        # Sigmoid, errors and weights of the map; logits, targets and weights of the good half.
        return found + 6 * FP32 * steps**2

    @property
    def kept_once(self) -> float:
        """Places of the sample points and the weights of both neighbours."""
        return 2 * self.head.samples * self.steps**2 * (2 * INT64 + 2 * self.compute)
