"""An order that puts no two clips of one source video into a global batch, in constant memory.

The samples must lie source by source: then clips of a source with M clips are less than M apart.
An epoch turns the circle of all n samples by a random angle and cuts it into B strata of
m = floor(n / B) neighbours. Every global batch has one sample of each stratum, so only clips on the
two sides of a cut could meet. Therefore M - 1 of the batches take the first M - 1 samples of all
strata, and no other sample: the last M - 1 of a stratum are in other batches than the first of the
next one, if M - 1 <= m / 2. Both parts of each stratum are permuted on their own, and so are
batches and strata. Where M is far below m, nearly all pairs of samples of other sources meet
equally often: the rate of a pair is (1 - (M - 1) / m) to 2 times the usual one.
"""

from __future__ import annotations

import numpy as np

from svilm_fast.data.errors import DataError
from svilm_fast.data.order import ROUNDS, Permutation, mixed_words

_STEP = np.uint64(0x9E3779B97F4A7C15)


class Permutations:
    """A family of permutations of [0, n), one for each number `which`; each as in `Permutation`."""

    def __init__(self, n: int, *key: int | str) -> None:
        self._of = Permutation(n, *key)
        self.n = n

    def __call__(self, numbers: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The images int64 [m] of `numbers` int64 [m] under the permutations `which` int64 [m]."""
        result = numbers.astype(np.uint64)
        # The round keys are mixed with `which` by a hash: a sum would give related permutations.
        tweak = (which.astype(np.uint64) + np.uint64(1)) * _STEP
        todo = np.arange(len(result))
        while todo.size:
            result[todo] = self._encrypt(result[todo], tweak[todo])
            todo = todo[result[todo] >= self.n]
        return result.astype(np.int64)

    def _encrypt(self, numbers: np.ndarray, tweak: np.ndarray) -> np.ndarray:
        half, mask, keys = self._of.network
        left, right = numbers >> half, numbers & mask
        for number in range(ROUNDS):
            key = mixed_words(keys[number] ^ tweak)
            left, right = right, left ^ (mixed_words(right ^ key) & mask)
        return (left << half) | right


class SeparateOrder:
    """Every epoch visits all samples; clips of one source are never in one global batch.

    Holds for the batches of an epoch, which are m = floor(total / global_batch), not for samples
    that stand in for others that cannot be loaded.

    Args:
        total: n samples, those of each source following one another.
        global_batch: B.
        most: clips of the source with most of them.

    Raises:
        DataError: `most` is above floor(m / 2) + 1.
    """

    def __init__(self, seed: int, total: int, global_batch: int, most: int) -> None:
        self.seed, self.total, self.global_batch = seed, total, global_batch
        self.batches = max(1, total // global_batch)
        self.edge = max(0, most - 1)
        if self.edge > self.batches // 2:
            raise DataError(
                f"data.same_source=separate: one source has up to {most:,} clips, and an epoch of "
                f"{self.batches:,} global batches of {global_batch:,} separates at most "
                f"{self.batches // 2 + 1:,}: lower training.global_batch, keep fewer clips of a "
                "source, or set data.same_source=mask"
            )
        self._epoch: tuple[int, Permutation, int, tuple[Permutations, ...]] | None = None

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples int64 [m] at `positions` int64 [m] of an epoch."""
        batches, turn, (slots, edges, others) = self._of(epoch)
        positions = np.asarray(positions, dtype=np.int64)
        circle = positions.copy()  # of the rest that fills no batch, in the order of the samples
        whole = np.flatnonzero(positions < self.batches * self.global_batch)
        if len(whole):
            time, slot = np.divmod(positions[whole], self.global_batch)
            stratum = slots(slot, time)
            batch = batches(time)
            place = np.empty_like(batch)
            edge = batch < self.edge
            place[edge] = edges(batch[edge], stratum[edge])
            place[~edge] = self.edge + others(batch[~edge] - self.edge, stratum[~edge])
            circle[whole] = stratum * self.batches + place
        return (circle + turn) % self.total

    def _of(self, epoch: int) -> tuple[Permutation, int, tuple[Permutations, ...]]:
        if self._epoch is None or self._epoch[0] != epoch:
            key = (self.seed, epoch)
            batches = Permutation(self.batches, "batches", *key)
            turn = int(Permutation(self.total, "turn", *key)(np.array([0]))[0])
            family = (
                Permutations(self.global_batch, "slots", *key),
                Permutations(max(1, self.edge), "edges", *key),
                Permutations(self.batches - self.edge, "others", *key),
            )
            self._epoch = epoch, batches, turn, family
        return self._epoch[1:]
