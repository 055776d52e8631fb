"""`data.same_source=separate`: no two clips of one source in a global batch, in constant memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from svilm_fast.data.errors import DataError
from svilm_fast.data.separate import Permutations, SeparateOrder


def _sources(n, most, seed):
    """Sources of n samples that lie together, with 1 to `most` each; one has `most`."""
    draw = np.random.default_rng(seed)
    sizes = np.concatenate([[most], draw.integers(1, most + 1, n)])
    return np.repeat(np.arange(len(sizes)), sizes)[:n]


@pytest.mark.parametrize(
    ("n", "batch", "most"),
    [(60, 5, 7), (61, 5, 7), (97, 8, 7), (1000, 16, 32), (12, 12, 1), (9, 2, 3)],
)
def test_batches_hold_a_source_once_and_an_epoch_every_sample(n, batch, most):
    sources = _sources(n, most, n)
    order = SeparateOrder(3, n, batch, most)
    epochs = []
    for epoch in range(40):
        rows = order.at(epoch, np.arange(n))
        assert np.array_equal(np.sort(rows), np.arange(n))
        whole = sources[rows[: n // batch * batch]].reshape(-1, batch)
        assert all(len(np.unique(each)) == batch for each in whole)
        epochs.append(rows.tolist())
    assert n < 20 or len({tuple(rows) for rows in epochs}) == 40


def test_positions_are_independent_of_how_they_are_asked_for():
    order = SeparateOrder(0, 1000, 16, 5)
    rows = order.at(2, np.arange(1000))
    places = np.array([999, 3, 500, 991])
    assert order.at(2, places).tolist() == rows[places].tolist()
    assert SeparateOrder(0, 1000, 16, 5).at(2, places[:1]).tolist() == [rows[999]]
    assert SeparateOrder(1, 1000, 16, 5).at(2, np.arange(1000)).tolist() != rows.tolist()


@pytest.mark.parametrize(("most", "within"), [(1, 0.1), (3, 0.2)])
def test_samples_meet_about_equally_often(most, within):
    n, batch, epochs = 240, 12, 1000
    order = SeparateOrder(0, n, batch, most)
    together = np.zeros((n, n))
    for epoch in range(epochs):
        for each in order.at(epoch, np.arange(n)).reshape(-1, batch):
            together[np.ix_(each, each)] += 1
    step = n // batch  # the samples of a stratum
    apart = np.subtract.outer(np.arange(n), np.arange(n)) % n
    apart = np.minimum(apart, n - apart)
    usual = (apart >= step) & (np.minimum(apart % step, -apart % step) >= most - 1)
    expected = epochs * (batch - 1) / (n - 1)
    assert abs(together[usual].mean() / expected - 1) < within
    # A pair's count is about Poisson: its spread over the pairs is near the root of the mean.
    assert together[usual].std() < 1.25 * expected**0.5
    assert not together[(apart > 0) & (apart < most)].any()


def test_permutations_of_a_family_are_bijections_and_differ():
    family = Permutations(37, "test", 0)
    every = np.array([family(np.arange(37), np.full(37, which)) for which in range(50)])
    assert (np.sort(every) == np.arange(37)).all()
    assert len({tuple(row) for row in every.tolist()}) == 50
    # The images of one number under 5,000 permutations are spread evenly: chi-square, 36 degrees.
    images = family(np.full(5000, 7), np.arange(5000))
    counts = np.bincount(images, minlength=37)
    assert ((counts - 5000 / 37) ** 2 / (5000 / 37)).sum() < 80


def test_memory_does_not_grow_with_the_samples():
    tracemalloc.start()
    order = SeparateOrder(0, 234_000_000, 32_768, 100)
    rows = order.at(0, np.arange(4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 4096
    assert peak < 4 << 20


def test_a_source_with_too_many_clips_is_refused():
    with pytest.raises(DataError, match=r"up to 7 clips, and an epoch of 10 .* at most 6.*mask"):
        SeparateOrder(0, 100, 10, 7)
