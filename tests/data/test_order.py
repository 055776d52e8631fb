"""Orders are permutations, any position on its own, and look random."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from svilm_fast.data.order import Permutation, SortedOrder, WindowOrder, build_order

GOLDEN_TEN = [0, 2, 4, 9, 3, 1, 5, 8, 7, 6]
GOLDEN_LARGE = [209_713_378, 106_808_952, 8_093_797, 10_898_809]
GOLDEN_WINDOWS = [1_370_629, 7_388_796, 5_567_521, 4_271_071]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 64, 65, 1000, 65_537, 300_003])
def test_a_permutation_is_a_bijection_with_an_inverse(n):
    permutation, numbers = Permutation(n, "test", n), np.arange(n)
    images = permutation(numbers)
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), numbers)
    assert np.array_equal(permutation.inverse(images), numbers)


def test_a_single_position_of_a_huge_epoch_is_that_of_the_whole():
    permutation = Permutation(234_000_000, "epoch", 1, 2)
    positions = np.array([0, 1, 117_000_000, 233_999_999])
    together = permutation(positions)
    assert [permutation(np.array([p]))[0] for p in positions] == together.tolist()
    assert together.min() >= 0
    assert together.max() < 234_000_000


def test_the_permutation_never_changes():
    # Checkpoints store a position only; another permutation would repeat and lose samples.
    assert Permutation(10, "epoch", 0, 0)(np.arange(10)).tolist() == GOLDEN_TEN
    assert Permutation(234_000_000, "epoch", 7, 3)(np.arange(4)).tolist() == GOLDEN_LARGE


def _p_value(counts, expected):
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return chi2.sf(statistic, len(counts) - 1)


def test_all_orders_of_four_are_equally_frequent():
    orders = Counter(
        tuple(Permutation(4, "epoch", seed, 0)(np.arange(4)).tolist()) for seed in range(4800)
    )
    assert set(orders) == set(itertools.permutations(range(4)))
    assert _p_value(orders.values(), 200) > 1e-4


def test_positions_spread_evenly_and_neighbours_part():
    images = Permutation(234_000_000, "epoch", 5, 1)(np.arange(200_000))
    counts = np.bincount(images * 500 // 234_000_000, minlength=500)
    assert _p_value(counts, 400) > 1e-4
    gaps = np.bincount(((images[1:] - images[:-1]) % 234_000_000) * 500 // 234_000_000)
    assert _p_value(gaps, 199_999 / 500) > 1e-4


def test_seeds_and_epochs_give_unrelated_orders():
    base = Permutation(1000, "epoch", 1, 0)(np.arange(1000))
    for other in (("epoch", 1, 1), ("epoch", 2, 0), ("epoch", 10, 0), ("shards", 1, 0)):
        same = (Permutation(1000, *other)(np.arange(1000)) == base).sum()
        assert same < 12  # one is expected


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_a_window_holds_whole_shards_and_an_epoch_every_sample_once(window):
    sizes = np.array([5, 1, 9, 3, 3, 8, 4])
    shard_of = np.repeat(np.arange(7), sizes)
    order = WindowOrder(3, sizes, window)
    positions = np.arange(33)
    rows = order.at(2, positions)
    assert sorted(rows.tolist()) == positions.tolist()
    assert order.at(2, positions[::-1]).tolist() == rows[::-1].tolist()
    assert [int(order.at(2, np.array([p]))[0]) for p in positions] == rows.tolist()
    seen: list[int] = []
    for shard in shard_of[rows].tolist():
        if shard not in seen:
            seen.append(shard)
        # Shards of the window before are never read again.
        assert seen.index(shard) // window == (len(seen) - 1) // window
    assert order.at(3, positions).tolist() != rows.tolist()


def test_sort_follows_keys_not_rows():
    keys, other = torch.tensor([5, 99, 12, 7, 40]), torch.tensor([3, 0, 4, 1, 2])
    rows = SortedOrder(1, lambda: keys).at(0, np.arange(5))
    moved = SortedOrder(1, lambda: keys[other]).at(0, np.arange(5))
    assert torch.equal(keys[rows], keys[other][moved])


def test_permute_asks_for_no_array_of_samples():
    def never():
        raise AssertionError("asked for an array")

    order = build_order("permute", 1, 10**9, keys=never, shard_samples=never, window=64)
    assert order.at(0, np.arange(8)).shape == (8,)


def test_numbers_outside_are_refused():
    for numbers in ([10], [-1]):
        with pytest.raises(ValueError, match=r"\[0, 10\)"):
            Permutation(10, "x")(np.array(numbers))
    with pytest.raises(ValueError, match="1 to 2\\^62"):
        Permutation(0, "x")


def test_one_number_is_permuted_as_it_is_among_others():
    for n in (1, 2, 3, 1000, 234_000_000, 2**62):
        permutation = Permutation(n, "epoch", 3)
        numbers = np.unique(np.random.default_rng(0).integers(n, size=50))
        numbers = np.append(numbers, numbers[-1])  # never an array of one number
        images = permutation(numbers)
        for number, image in zip(numbers.tolist(), images.tolist()):
            assert permutation(np.array([number])).tolist() == [image]
            assert permutation.inverse(np.array([image])).tolist() == [number]


def test_windows_are_those_of_permutations_made_anew():
    # More windows than are kept, epochs that alternate, positions in any order.
    sizes = np.array([3, 1, 4, 2, 5] * 9)
    order, total = WindowOrder(4, sizes, 2), int(sizes.sum())
    random = np.random.default_rng(0)
    for epoch in (0, 1, 0, 2):
        singles = random.choice(total, 30)
        for positions in (np.arange(total), random.permutation(total), *singles):
            positions = np.atleast_1d(positions)
            fresh = WindowOrder(4, sizes, 2)
            assert order.at(epoch, positions).tolist() == fresh.at(epoch, positions).tolist()


def test_windows_never_change():
    # Checkpoints store a position only; another order would repeat and lose samples.
    order = WindowOrder(7, np.full(10_000, 1000), 64)
    assert order.at(3, np.array([0, 1, 64_000, 9_999_999])).tolist() == GOLDEN_WINDOWS
