"""Global memory of `gluon_interpreter`: pointers and tensor descriptors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.kernels.gluon_machine import GluonFault


@dataclass
class Pointer:
    """Elements of a global tensor; `written` is shared by the programs of a launch."""

    name: str
    data: np.ndarray
    written: np.ndarray
    at: Any = 0

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.name, self.data, self.written, self.at + offset)

    __radd__ = __add__

    def __sub__(self, offset: Any) -> Pointer:
        return self + -offset

    def places(self, mask: Any, what: str) -> np.ndarray:
        at = np.atleast_1d(self.at)[np.broadcast_to(mask, np.shape(np.atleast_1d(self.at)))]
        if at.size and not (at.min() >= 0 and at.max() < self.data.size):
            raise GluonFault("memory", f"{what} of {self.name} outside its {self.data.size}")
        return at


class Descriptor:
    """A tensor descriptor: blocks of a tensor, with zeros outside of it."""

    def __init__(self, name: str, given: Any) -> None:
        self.name, self.base, self.tensor = name, given.base, given.base.float().numpy()
        self.written = np.zeros(self.tensor.shape, bool)
        size = given.base.element_size()
        shape = list(given.block_shape)
        self.block_type = SimpleNamespace(shape=shape, nbytes=math.prod(shape) * size)
        self.layout, self.element_size = None, size

    def dtype(self, values: Any) -> np.ndarray:
        """Values rounded to the elements of the tensor, in float32."""
        rounded = torch.from_numpy(np.asarray(values, np.float32)).to(self.base.dtype)
        return rounded.float().numpy()

    def block(self, *at: int) -> np.ndarray:
        block = np.zeros(self.block_type.shape, np.float32)
        inside, part = self._inside(at)
        block[part] = self.tensor[inside]
        return block

    def write(self, at: tuple[int, ...], block: np.ndarray) -> None:
        """Write what lies inside the tensor."""
        inside, part = self._inside(at)
        if self.written[inside].any():
            raise GluonFault("memory", f"{self.name} is written twice")
        self.written[inside] = True
        values = block.reshape(self.block_type.shape)[part]
        self.base[inside] = torch.from_numpy(values).to(self.base.dtype)

    def _inside(self, at: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a block inside the tensor: its place there and in the block."""
        if at[-1] * self.element_size % 16:
            raise GluonFault("memory", f"{self.name}: column {at[-1]} is not aligned to 16 bytes")
        starts, stops = [], []
        for first, size, length in zip(at, self.block_type.shape, self.tensor.shape):
            starts.append(min(max(int(first), 0), length))
            stops.append(max(min(int(first) + size, length), starts[-1]))
        inside = tuple(slice(*ends) for ends in zip(starts, stops))
        part = tuple(
            slice(start - int(first), stop - int(first))
            for start, stop, first in zip(starts, stops, at)
        )
        return inside, part
