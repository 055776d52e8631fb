"""Keyed permutations of [0, n) without a table: any position in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svilm_fast.data.errors import DataError

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), on uint64 arrays."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """A permutation of [0, n) that a key draws: a balanced Feistel network with cycle walking.

    Positions and results are int64 arrays. Values beyond n are permuted again until they lie
    below it: fewer than four times on average.
    """

    def __init__(self, n: int, key: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation of {n} elements")
        self.n = n
        self._half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        words = [(key + (number + 1) * _GOLDEN) & _WORD for number in range(_ROUNDS)]
        self._keys = _mixed(np.array(words, np.uint64))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at `positions`."""
        return self._walk(positions, self._forward)

    def inverse(self, elements: np.ndarray) -> np.ndarray:
        """The positions of `elements`."""
        return self._walk(elements, self._backward)

    def _walk(self, values: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        result = step(np.asarray(values, np.int64).astype(np.uint64))
        while (outside := result >= np.uint64(self.n)).any():
            result[outside] = step(result[outside])
        return result.astype(np.int64)

    def _forward(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._half) | right

    def _backward(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (_mixed(left + key) & self._mask), left
        return (left << self._half) | right


@dataclass(frozen=True)
class Derangement:
    """A permutation of [0, n) of one cycle, so that no element stays."""

    order: Permutation

    def __call__(self, elements: np.ndarray) -> np.ndarray:
        """What takes the place of `elements`, int64: the next one of the permutation."""
        return self.order((self.order.inverse(elements) + 1) % self.order.n)


def derangement(n: int, seed: int) -> Derangement:
    """A derangement of n elements that the seed draws. Raises DataError for fewer than two."""
    if n < 2:
        raise DataError("data.shuffle_captions needs at least two samples")
    return Derangement(Permutation(n, seed))
