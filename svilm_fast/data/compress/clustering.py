"""Clusterings of small vectors behind one interface: vectors in, centres out.

k-means runs in scikit-learn, faiss or flash-kmeans. The others are scikit-learn's, on a sample.
Every vector that is not in the sample goes to its nearest centre.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.outputs import OfflineError

MOST_SKLEARN = 10_000  # vectors: agglomerative clustering takes memory of their square
_ITERATIONS = 25
# Means of dimensions above this would need covariances of millions of numbers.
_FULL_COVARIANCE = 6
_NEIGHBOURS = 4  # DBSCAN: of a core vector
_EXACT_VALUES = 128  # products of so many uint8 pairs are whole numbers in float32
_AT_ONCE = 1 << 15


class Method(StrEnum):
    KMEANS = "kmeans"
    GMM = "gmm"
    AGGLOMERATIVE = "agglomerative"
    DBSCAN = "dbscan"


class KMeansEngine(StrEnum):
    AUTO = "auto"
    SKLEARN = "sklearn"
    FAISS = "faiss"
    FLASH = "flash"


# Vectors that are clustered unless another number is given.
SAMPLES = {Method.AGGLOMERATIVE: 4000}


@dataclass(frozen=True)
class Clustering:
    """How palettes are found.

    method, engine: engine of k-means, as `chosen_engine` gives it. entries: most centres.
    sample: vectors that are clustered. seed: of the sample and of the start.
    """

    method: Method
    engine: KMeansEngine
    entries: int
    sample: int
    seed: int

    def palette(self, vectors: np.ndarray) -> np.ndarray:
        """Centres of vectors uint8 [n, V], as uint8 [entries, V], sorted and distinct.

        Vectors with no more distinct values than entries are their own palette. One thread works,
        so that the number of cores changes no byte.
        """
        distinct = np.unique(vectors, axis=0)
        if len(distinct) <= self.entries:
            return distinct
        found = _METHODS[self.method]
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: what is found is measured
            centres = found(vectors.astype(np.float32), self)
        return np.unique(np.clip(np.rint(centres), 0, 255).astype(np.uint8), axis=0)


def one_thread() -> AbstractContextManager[Any]:
    """Numeric libraries use one thread inside. Raises OfflineError without scikit-learn."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise OfflineError(
            "compressing needs scikit-learn: pip install 'svilm-fast[cluster]'"
        ) from None
    return threadpool_limits(1)


def chosen_engine(wanted: KMeansEngine, method: Method, sample: int) -> KMeansEngine:
    """The engine that runs; raises OfflineError where it cannot.

    auto: flash-kmeans where it is installed and a GPU is there, else faiss where installed, else
    scikit-learn.
    """
    if method is not Method.KMEANS:
        if wanted not in (KMeansEngine.AUTO, KMeansEngine.SKLEARN):
            raise OfflineError(f"--kmeans {wanted} is an engine of --method kmeans, not {method}")
        engine = KMeansEngine.SKLEARN
    else:
        engine = next(filter(_runs, (KMeansEngine.FLASH, KMeansEngine.FAISS)), KMeansEngine.SKLEARN)
        if wanted is not KMeansEngine.AUTO:
            engine = wanted
        package = {KMeansEngine.FAISS: "faiss", KMeansEngine.FLASH: "flash_kmeans"}.get(engine)
        if package is not None and importlib.util.find_spec(package) is None:
            raise OfflineError(
                f"--kmeans {engine} is not installed: pip install 'svilm-fast[cluster]', or use "
                "--kmeans sklearn"
            )
    if engine is KMeansEngine.SKLEARN and sample > MOST_SKLEARN:
        raise OfflineError(
            f"--sample {sample}: scikit-learn clusters at most {MOST_SKLEARN} vectors; more need "
            "--method kmeans with faiss or flash-kmeans"
        )
    return engine


def _runs(engine: KMeansEngine) -> bool:
    if engine is KMeansEngine.FAISS:
        return importlib.util.find_spec("faiss") is not None
    if importlib.util.find_spec("flash_kmeans") is None:
        return False
    import torch

    return torch.cuda.is_available()


def nearest(vectors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The entry of a palette uint8 [k, V] with the least squared distance: uint8 [n].

    The first one where several are equally near. The arithmetic is exact, so that every machine
    gives the same codes.
    """
    values = vectors.shape[1]
    if values == 3:  # colours recur: each is compared once
        numbers = vectors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colours, back = np.unique(numbers, return_inverse=True)
        octets = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1)
        return _nearest(octets.astype(np.uint8), palette)[back]
    return _nearest(vectors, palette)


def _nearest(vectors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    kind: type[np.floating] = np.float32 if vectors.shape[1] <= _EXACT_VALUES else np.float64
    centres = palette.astype(kind)
    lengths = (centres * centres).sum(axis=1)
    codes = np.empty(len(vectors), np.uint8)
    for start in range(0, len(vectors), _AT_ONCE):
        some = vectors[start : start + _AT_ONCE].astype(kind)
        codes[start : start + _AT_ONCE] = np.argmin(lengths - 2 * (some @ centres.T), axis=1)
    return codes


def _kmeans(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    return _ENGINES[how.engine](vectors, how)


def _kmeans_sklearn(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    from sklearn.cluster import KMeans

    found = KMeans(how.entries, n_init=1, max_iter=_ITERATIONS, random_state=how.seed, copy_x=False)
    return found.fit(vectors).cluster_centers_


def _kmeans_faiss(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(1)
    found = faiss.Kmeans(
        vectors.shape[1],
        how.entries,
        niter=_ITERATIONS,
        seed=how.seed,
        # Its warnings of few vectors go to standard error.
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, len(vectors)),
    )
    found.train(np.ascontiguousarray(vectors))
    return found.centroids


def _kmeans_flash(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    import torch
    from flash_kmeans import FlashKMeans

    found = FlashKMeans(vectors.shape[1], how.entries, niter=_ITERATIONS, seed=how.seed)
    # Its Euclidean distances are of the dtype of the data.
    found.train(torch.from_numpy(vectors).to(found.device))
    centres: Any = found.centroids_b[0]
    return centres.float().cpu().numpy()


def _gmm(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    full = vectors.shape[1] <= _FULL_COVARIANCE
    found = GaussianMixture(
        how.entries,
        covariance_type="full" if full else "diag",
        reg_covar=1.0,  # levels of grey, squared: of flat regions the variance is zero
        max_iter=_ITERATIONS,
        init_params="k-means++",
        random_state=how.seed,
    )
    return found.fit(vectors).means_


def _agglomerative(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    return _means(vectors, AgglomerativeClustering(how.entries).fit_predict(vectors))


def _dbscan(vectors: np.ndarray, how: Clustering) -> np.ndarray:
    """Means of the largest clusters. Their number is up to the data; noise has no cluster."""
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(vectors)
    distances = neighbours.kneighbors()[0][:, -1]
    radius = max(float(np.median(distances)), 1.0)
    labels = DBSCAN(eps=radius, min_samples=_NEIGHBOURS + 1).fit_predict(vectors)
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    if not sizes.any():
        raise DataError(
            f"DBSCAN finds no cluster in {len(vectors)} vectors: choose another --method"
        )
    largest = np.argsort(-sizes, kind="stable")[: how.entries]
    chosen = np.isin(labels, largest)
    return _means(vectors[chosen], np.unique(labels[chosen], return_inverse=True)[1])


def _means(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    sums = np.zeros((labels.max() + 1, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    return sums / np.bincount(labels)[:, None]


_Found = Callable[[np.ndarray, Clustering], np.ndarray]
_ENGINES: dict[KMeansEngine, _Found] = {
    KMeansEngine.SKLEARN: _kmeans_sklearn,
    KMeansEngine.FAISS: _kmeans_faiss,
    KMeansEngine.FLASH: _kmeans_flash,
}
_METHODS: dict[Method, _Found] = {
    Method.KMEANS: _kmeans,
    Method.GMM: _gmm,
    Method.AGGLOMERATIVE: _agglomerative,
    Method.DBSCAN: _dbscan,
}
