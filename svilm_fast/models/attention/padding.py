"""Sequences of different lengths: the mask of real tokens and its packed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PackedLengths:
    """Where every sequence lies once only its real tokens are laid end to end.

    `indices` int64 [total] points into the flattened [b * L]; `cumulative` is int32 [b + 1].
    """

    indices: Tensor
    cumulative: Tensor
    longest: int
    lengths: tuple[int, ...]


class KeyPadding:
    """Mask of real tokens, bool [b, L]; the packed form is made once and kept.

    Making the packed form reads lengths on the host: only backends of variable length ask for it.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or mask.dim() != 2:
            raise ValueError(
                f"the key mask must be bool [batch, length], got {mask.dtype} {tuple(mask.shape)}"
            )
        self.mask = mask

    @cached_property
    def packed(self) -> PackedLengths:
        lengths = self.mask.sum(dim=1)
        cumulative = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        indices = self.mask.flatten().nonzero().squeeze(1)
        listed = tuple(lengths.tolist())
        return PackedLengths(indices, cumulative, max(listed, default=0), listed)


def pack(states: Tensor, packed: PackedLengths) -> Tensor:
    """[b, L, H, d] to [total, H, d]: the real tokens alone."""
    return states.flatten(0, 1).index_select(0, packed.indices)


def unpack(states: Tensor, packed: PackedLengths, batch: int, length: int) -> Tensor:
    """[total, H, d] back to [b, L, H, d], zero where there was padding."""
    flat = states.new_zeros(batch * length, *states.shape[1:])
    return flat.index_copy(0, packed.indices, states).unflatten(0, (batch, length))


def earlier(query: Tensor) -> Tensor:
    """Causal mask bool [L, L] for queries [b, L, H, d]: true where the key is not later."""
    length = query.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
