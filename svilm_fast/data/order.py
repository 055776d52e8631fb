"""The order in which an epoch visits the samples of a split: any position, computed on its own.

`permute` and `window` need no array over the samples. A keyed permutation of [0, n) is a balanced
Feistel network over the smallest even number of bits that holds n - 1; results outside [0, n) are
permuted again until they fall inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary
Finite Domains, 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from svilm_fast.core.philox import derive_seeds
from svilm_fast.data.config import OrderName
from svilm_fast.data.errors import DataError

ORDER_SITE = 100  # a stream of its own beside those of core.philox.Site
ROUNDS = 8
_WINDOWS_KEPT = 8  # permutations; a reader is in one or two windows at a time


class Order(Protocol):
    """The samples of every epoch, by position."""

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples int64 [m] at `positions` int64 [m] of an epoch, each in [0, total)."""


class Permutation:
    """A pseudo-random permutation of [0, n), fixed by `key`, in constant memory.

    Args:
        n: how many numbers; at least 1, at most 2^62.
        key: names the permutation; every part of it counts.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        if not 1 <= n <= 2**62:
            raise ValueError(f"a permutation needs 1 to 2^62 numbers, got {n}")
        self.n = n
        self._half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))  # bits of each half
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
        self._integers = int(self._half), int(self._mask), self._round_keys.tolist()

    @property
    def network(self) -> tuple[np.uint64, np.uint64, np.ndarray]:
        """Bits of a half, its mask, and the round keys."""
        return self._half, self._mask, self._round_keys

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """The images int64 [m] of `numbers` int64 [m]."""
        return self._walk(numbers, self._encrypt)

    def inverse(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers int64 [m] whose images are `numbers` int64 [m]."""
        return self._walk(numbers, self._decrypt)

    def _walk(self, numbers: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        numbers = np.asarray(numbers, dtype=np.int64)
        if numbers.size == 1:  # Python's integers are faster than arrays of one number
            number = numbers.item()
            if not 0 <= number < self.n:
                raise ValueError(f"numbers to permute must lie in [0, {self.n})")
            one = self._walk_one(number, forward=step == self._encrypt)
            return np.full(numbers.shape, one, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.n:
            raise ValueError(f"numbers to permute must lie in [0, {self.n})")
        result = step(numbers.astype(np.uint64))
        # The domain has fewer than 4 n numbers, so each step leaves at most 3 of 4 outside.
        outside = np.flatnonzero(result >= self.n)
        while outside.size:
            result[outside] = step(result[outside])
            outside = outside[result[outside] >= self.n]
        return result.astype(np.int64)

    def _walk_one(self, number: int, *, forward: bool) -> int:
        half, mask, keys = self._integers
        while True:
            left, right = number >> half, number & mask
            if forward:
                for key in keys:
                    left, right = right, left ^ (_mixed_one(right ^ key) & mask)
            else:
                for key in reversed(keys):
                    left, right = right ^ (_mixed_one(left ^ key) & mask), left
            number = left << half | right
            if number < self.n:
                return number

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (mixed_words(right ^ key) & self._mask)
        return (left << self._half) | right

    def _decrypt(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._round_keys[::-1]:
            left, right = right ^ (mixed_words(left ^ key) & self._mask), left
        return (left << self._half) | right


def mixed_words(words: np.ndarray) -> np.ndarray:
    """A bijective hash of 64-bit words, modulo 2^64 (the finalizer of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mixed_one(word: int) -> int:
    """`mixed_words` of one word."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return word ^ word >> 31


class PermutedOrder:
    """Every epoch is a permutation of all samples; no array, any read pattern."""

    def __init__(self, seed: int, total: int) -> None:
        self.seed, self.total = seed, total
        self._epoch: tuple[int, Permutation] | None = None

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples int64 [m] at `positions` int64 [m] of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, Permutation(self.total, "epoch", self.seed, epoch)
        return self._epoch[1](positions)


class WindowOrder:
    """Shards are permuted, then the samples inside windows of `window` consecutive shards.

    For storage that reads whole shards well and single samples badly: at any time only the shards
    of one window are read. Samples of two shards meet in a batch only in epochs that put both
    shards into one window, which is the price.

    Args:
        shard_samples: int64 [shards], samples of each shard; sample numbers count through the
            shards in this order.
        window: shards of a window.
    """

    def __init__(self, seed: int, shard_samples: np.ndarray, window: int) -> None:
        self.seed, self.window = seed, window
        self.sizes = np.asarray(shard_samples, dtype=np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes  # number of each shard's first sample
        self._epoch: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._kept: dict[int, Permutation] = {}  # of windows of this epoch

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and where each of them and each window ends."""
        if self._epoch is None or self._epoch[0] != epoch:
            count = len(self.sizes)
            shards = Permutation(count, "shards", self.seed, epoch)(np.arange(count))
            ends = np.cumsum(self.sizes[shards])
            # The last window may hold fewer shards.
            window_ends = np.append(ends[self.window - 1 : -1 : self.window], ends[-1])
            self._epoch = epoch, shards, ends, window_ends
            self._kept.clear()
        return self._epoch[1:]

    def _inside(self, epoch: int, window: int, size: int) -> Permutation:
        """The permutation of a window of the epoch that `_shards` was last asked for."""
        if window not in self._kept:
            if len(self._kept) == _WINDOWS_KEPT:
                self._kept.clear()
            self._kept[window] = Permutation(size, "window", self.seed, epoch, window)
        return self._kept[window]

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples int64 [m] at `positions` int64 [m] of an epoch."""
        positions = np.asarray(positions, dtype=np.int64)
        shards, ends, window_ends = self._shards(epoch)
        windows = np.searchsorted(window_ends, positions, side="right")
        result = np.empty_like(positions)
        for number in np.unique(windows).tolist():
            mine = windows == number
            start = int(window_ends[number - 1]) if number else 0
            inside = self._inside(epoch, number, int(window_ends[number]) - start)
            shuffled = start + inside(positions[mine] - start)
            places = np.searchsorted(ends, shuffled, side="right")
            begins = ends[places] - self.sizes[shards[places]]
            result[mine] = self.first[shards[places]] + shuffled - begins
        return result


class SortedOrder:
    """Samples sorted by a hash of (seed, epoch, key): follows the names of samples, not their rows.

    Holds 8 bytes a sample, and 24 while an epoch begins. The only order before `data.order`
    existed.
    """

    def __init__(self, seed: int, keys: Callable[[], torch.Tensor]) -> None:
        self.seed, self.keys = seed, keys
        self._epoch: tuple[int, np.ndarray] | None = None

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples int64 [m] at `positions` int64 [m] of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            hashed = derive_seeds(self.seed, epoch, self.keys(), ORDER_SITE)
            self._epoch = epoch, torch.argsort(hashed, stable=True).numpy()
        return self._epoch[1][positions]


def build_order(
    name: OrderName,
    seed: int,
    total: int,
    *,
    keys: Callable[[], torch.Tensor],
    shard_samples: Callable[[], np.ndarray],
    window: int,
) -> Order:
    """The order of `total` samples that `data.order` names.

    Args:
        keys: gives int64 [total], `sample_key` of every sample; called by `sort` alone.
        shard_samples: gives int64 [shards], samples of every shard; called by `window` alone.
        window: shards of a window.
    """
    if name == "permute":
        return PermutedOrder(seed, total)
    if name == "window":
        return WindowOrder(seed, shard_samples(), window)
    return SortedOrder(seed, keys)


def derangement(n: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A permutation of [0, n) of one cycle, so that no number stays; picklable.

    Raises DataError for fewer than two numbers.
    """
    if n < 2:
        raise DataError("data.shuffle_captions needs at least two samples")
    return _Cycle(Permutation(n, "derangement", seed))


class _Cycle:
    """Maps every number to the one behind it in a permutation."""

    def __init__(self, permutation: Permutation) -> None:
        self._permutation = permutation

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        permutation = self._permutation
        return permutation((permutation.inverse(numbers) + 1) % permutation.n)
