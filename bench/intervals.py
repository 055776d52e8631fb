"""Bootstrap intervals of the figures that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000


def bootstrap_interval(
    samples: Sequence[Sequence[float]], statistic: Callable[..., np.ndarray], confidence: float
) -> tuple[float, float]:
    """The percentile interval of a statistic of independent samples, the same at every call.

    Args:
        samples: each is resampled by itself.
        statistic: takes the samples and the `axis` along which they lie.
        confidence: between 0 and 1.
    """
    # scipy wants two values of each sample; one value twice resamples to itself.
    data = tuple(np.repeat(values, 2) if len(values) == 1 else values for values in samples)
    low, high = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(low), float(high)
