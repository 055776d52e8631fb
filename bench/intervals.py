"""Bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000


def bootstrap_interval(
    samples: Sequence[Sequence[float]], statistic: Callable[..., np.ndarray], confidence: float
) -> tuple[float, float]:
    """The percentile interval of a statistic of independent samples; it repeats exactly.

    Args:
        samples: each is resampled independently.
        statistic: takes the samples and their `axis`.
        confidence: between 0 and 1.
    """
    # scipy requires two values per sample; a value repeated resamples to itself.
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
