"""An all-gather in slices: the transfer of a slice overlaps with computation on earlier slices.

A rank computes with its own rows first and with those of the other ranks as they arrive. In
backward it sends the gradients of the other ranks' rows first, and computation on its own rows
overlaps with the last transfer. Every rank issues the same collectives in the same order: the
gathers of the slices in forward, their reduce-scatters from the last slice to the first in
backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import collectives
from .operators import first_derivative_only

# A collective has a fixed cost of tens of microseconds. Links of 50 to 400 GB/s transfer this many
# bytes in 40 to 340 microseconds; smaller slices would mostly pay the fixed cost.
SLICE_BYTES = 1 << 24
# The first slice overlaps with the rank's own rows, the next with the first. More slices do not
# improve the overlap, and each adds launches.
MAX_SLICES = 4


def slice_count(tensor: Tensor, group: dist.ProcessGroup | None) -> int:
    """The number of slices of the gather of [b, ...]; equal on all ranks with equal b."""
    world_size = collectives.world_size(group)
    if world_size == 1:
        return 1
    whole = world_size * tensor.numel() * tensor.itemsize
    return max(1, min(MAX_SLICES, whole // SLICE_BYTES, tensor.shape[0]))


@dataclass(frozen=True)
class SlicePlan:
    """The parts in which a rank receives the [W b] rows of all ranks.

    With one slice there is one part: all rows in rank order. With several slices, the first part is
    the rank's own b rows; then each slice gives the same rows of every other rank, in rank order.
    """

    world_size: int
    rank: int
    local_batch: int
    slices: int

    @classmethod
    def of(cls, tensor: Tensor, group: dist.ProcessGroup | None) -> SlicePlan:
        """The plan for a tensor [b, ...] of each rank."""
        return cls(
            collectives.world_size(group),
            collectives.rank(group),
            tensor.shape[0],
            slice_count(tensor, group),
        )

    @property
    def whole(self) -> bool:
        """Whether there is one part."""
        return self.slices == 1

    @property
    def rows(self) -> list[slice]:
        """The rank-local rows of each slice."""
        step = -(-self.local_batch // self.slices)
        starts = range(0, self.local_batch, step)
        return [slice(start, min(start + step, self.local_batch)) for start in starts]

    @property
    def part_sizes(self) -> list[int]:
        """Rows of each part."""
        if self.whole:
            return [self.world_size * self.local_batch]
        others = self.world_size - 1
        return [self.local_batch, *(others * (rows.stop - rows.start) for rows in self.rows)]

    @property
    def diagonal_offsets(self) -> list[int]:
        """For each part, the column of a row's pair minus the row; outside parts without pairs."""
        return [self.rank * self.local_batch] if self.whole else [0, *self.part_sizes[1:]]

    def parts(self, everything: Tensor) -> list[Tensor]:
        """[W b, ...] in rank order, divided into the parts."""
        if self.whole:
            return [everything]
        by_rank = everything.unflatten(0, (self.world_size, self.local_batch))
        return [by_rank[self.rank], *(self.others(by_rank[:, rows]) for rows in self.rows)]

    def others(self, by_rank: Tensor) -> Tensor:
        """[W, c, ...] without this rank's rows: [(W - 1) c, ...]."""
        return torch.cat((by_rank[: self.rank], by_rank[self.rank + 1 :])).flatten(0, 1)

    def in_rank_order(self, values: Sequence[Tensor]) -> Tensor:
        """One vector per part, combined to [W b] in rank order; the inverse of `parts`."""
        if self.whole:
            return values[0]
        own, *others = values
        pieces = []
        for rows, value in zip(self.rows, others):
            size = rows.stop - rows.start
            before, after = value.split([self.rank * size, value.shape[0] - self.rank * size])
            piece = torch.cat((before, own[rows], after))
            pieces.append(piece.view(self.world_size, size))
        return torch.cat(pieces, 1).flatten()


@dataclass
class _Exchange:
    """The pending collectives, with the tensors that they read and write."""

    plan: SlicePlan
    group: dist.ProcessGroup | None
    arriving: list[tuple[Any, Tensor, Tensor]] = field(default_factory=list)
    leaving: dict[int, tuple[Any, Tensor, Tensor]] = field(default_factory=dict)


class _Start(torch.autograd.Function):
    """Start all gathers; backward waits for the reduce-scatters that `_Arrive` started."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, exchange: _Exchange) -> tuple[Tensor, Tensor]:
        ctx.exchange = exchange
        for rows in exchange.plan.rows:
            sent = tensor[rows].contiguous()
            received = sent.new_empty((exchange.plan.world_size, *sent.shape))
            work = dist.all_gather_into_tensor(
                received.flatten(0, 1), sent, group=exchange.group, async_op=True
            )
            exchange.arriving.append((work, received, sent))
        # The second output only connects the graph nodes of the slices to this one.
        return tensor.view_as(tensor), tensor.new_empty((0,))

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, own: Tensor, _: Tensor) -> tuple[Tensor, None]:
        total = own.to(_sum_dtype(own), copy=True)
        for number, rows in enumerate(ctx.exchange.plan.rows):
            work, received, _ = ctx.exchange.leaving.pop(number)
            work.wait()
            total[rows] += received
        return total.to(own.dtype), None


class _Arrive(torch.autograd.Function):
    """Wait for a slice; backward starts the reduce-scatter of its gradient and does not wait."""

    @staticmethod
    def forward(ctx: Any, tie: Tensor, exchange: _Exchange, number: int) -> Tensor:
        ctx.exchange, ctx.number = exchange, number
        work, received, _ = exchange.arriving[number]
        work.wait()
        exchange.arriving[number] = (None, tie, tie)
        return exchange.plan.others(received)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        plan, group = ctx.exchange.plan, ctx.exchange.group
        size = gradient.shape[0] // (plan.world_size - 1)
        shape = (plan.world_size * size, *gradient.shape[1:])
        summands = gradient.new_empty(shape, dtype=_sum_dtype(gradient))
        own = plan.rank * size
        summands[:own] = gradient[:own]
        summands[own : own + size] = 0
        summands[own + size :] = gradient[own:]
        received = summands.new_empty((size, *gradient.shape[1:]))
        work = dist.reduce_scatter_tensor(received, summands, group=group, async_op=True)
        ctx.exchange.leaving[ctx.number] = (work, received, summands)
        return gradient.new_empty((0,)), None, None


def gather_parts(
    tensor: Tensor, plan: SlicePlan, group: dist.ProcessGroup | None
) -> Iterator[Tensor]:
    """The parts of the [W b, ...] of all ranks, each as soon as it has arrived.

    All gathers start with the first part. Backward must use all parts or none. Gradients in half
    precision are summed in fp32.
    """
    if plan.whole:
        yield collectives.gather(tensor, group)
        return
    exchange = _Exchange(plan, group)
    own, tie = _Start.apply(tensor, exchange)
    yield own
    for number in range(len(plan.rows)):
        yield _Arrive.apply(tie, exchange, number)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, number: int) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for _ in range(number))

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].to(_sum_dtype(gradients[0]), copy=True)
        for gradient in gradients[1:]:
            total += gradient
        return total.to(gradients[0].dtype), None


def for_parts(tensor: Tensor, plan: SlicePlan) -> Sequence[Tensor]:
    """The tensor once for each part; gradients in half precision are summed in fp32."""
    number = len(plan.part_sizes)
    return (tensor,) if number == 1 else _Copies.apply(tensor, number)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
