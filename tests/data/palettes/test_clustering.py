"""Clusterings behind one interface: their palettes, exact codes, and engines that are missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svilm_fast.data.compress import clustering
from svilm_fast.data.compress.clustering import (
    Clustering,
    KMeansEngine,
    Method,
    chosen_engine,
    nearest,
)
from svilm_fast.data.offline.outputs import OfflineError

SKLEARN = KMeansEngine.SKLEARN


def _heaps(spread=4, count=4):
    """Vectors around some colours that lie far apart, and these colours."""
    random = np.random.default_rng(0)
    centres = np.array([[20, 20, 20], [220, 30, 40], [30, 210, 60], [60, 60, 230]])[:count]
    around = random.integers(-spread, spread + 1, (count, 60, 3))
    return (centres[:, None] + around).reshape(-1, 3).astype(np.uint8), centres


@pytest.mark.parametrize("method", list(Method))
def test_every_method_finds_the_heaps(method):
    vectors, centres = _heaps()
    palette = Clustering(method, SKLEARN, 4, 1000, 0).palette(vectors)
    assert palette.dtype == np.uint8
    assert palette.shape == (4, 3)
    distances = np.abs(palette[:, None].astype(int) - centres).max(axis=2)
    assert (distances.min(axis=0) <= 2).all()
    assert np.array_equal(palette, Clustering(method, SKLEARN, 4, 1000, 0).palette(vectors))


def test_few_distinct_vectors_are_their_own_palette():
    vectors = np.repeat(np.array([[9, 8, 7], [1, 2, 3]], np.uint8), 50, axis=0)
    palette = Clustering(Method.GMM, SKLEARN, 16, 1000, 0).palette(vectors)
    assert palette.tolist() == [[1, 2, 3], [9, 8, 7]]


@pytest.mark.parametrize("values", [3, 24, 48, 300])
def test_codes_are_the_nearest_entries_and_the_first_of_equals(values):
    random = np.random.default_rng(values)
    vectors = random.integers(0, 256, (500, values), dtype=np.uint8)
    palette = random.integers(0, 256, (20, values), dtype=np.uint8)
    palette[7] = palette[3]
    exact = ((vectors[:, None].astype(np.int64) - palette) ** 2).sum(axis=2).argmin(axis=1)
    codes = nearest(vectors, palette)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, exact)
    assert 7 not in codes


def test_engines_that_are_missing_or_do_not_fit_are_named(monkeypatch):
    monkeypatch.setattr(clustering.importlib.util, "find_spec", lambda name: None)
    assert chosen_engine(KMeansEngine.AUTO, Method.KMEANS, 100) is SKLEARN
    with pytest.raises(OfflineError, match=r"svilm-fast\[cluster\]"):
        chosen_engine(KMeansEngine.FAISS, Method.KMEANS, 100)
    with pytest.raises(OfflineError, match="at most 10000"):
        chosen_engine(KMeansEngine.AUTO, Method.KMEANS, 10_001)
    with pytest.raises(OfflineError, match="not gmm"):
        chosen_engine(KMeansEngine.FAISS, Method.GMM, 100)


def test_auto_takes_what_is_installed(monkeypatch):
    monkeypatch.setattr(clustering.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_engine(KMeansEngine.AUTO, Method.KMEANS, 20_000) is KMeansEngine.FAISS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_engine(KMeansEngine.AUTO, Method.KMEANS, 20_000) is KMeansEngine.FLASH
    assert chosen_engine(KMeansEngine.AUTO, Method.GMM, 100) is SKLEARN


def test_flash_kmeans_is_given_tensors_on_its_device(monkeypatch):
    vectors, _ = _heaps()
    seen = {}

    class Flash:
        device = torch.device("cpu")

        def __init__(self, values, entries, *, niter, seed):
            seen.update(values=values, entries=entries, seed=seed)

        def train(self, data):
            seen["shape"] = tuple(data.shape)
            self.centroids_b = data[None, :: len(data) // 4][:, :4]

    monkeypatch.setitem(sys.modules, "flash_kmeans", SimpleNamespace(FlashKMeans=Flash))
    palette = Clustering(Method.KMEANS, KMeansEngine.FLASH, 4, 1000, 5).palette(vectors)
    assert palette.shape == (4, 3)
    assert seen == {"values": 3, "entries": 4, "seed": 5, "shape": (240, 3)}


def test_faiss_finds_the_heaps():
    pytest.importorskip("faiss")
    vectors, centres = _heaps()
    palette = Clustering(Method.KMEANS, KMeansEngine.FAISS, 4, 1000, 1).palette(vectors)
    assert (np.abs(palette[:, None].astype(int) - centres).max(axis=2).min(axis=0) <= 2).all()
