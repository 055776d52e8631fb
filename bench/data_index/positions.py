"""Time of finding the samples at positions of an epoch, by order and number of samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svilm_fast.bench.data_index.made import SHARD_SAMPLES
from svilm_fast.data.config import DataConfig, OrderName
from svilm_fast.data.order import Order, build_order

TOTALS = (100_000, 1_000_000, 10_000_000, 234_000_000)
ORDERS: tuple[OrderName, ...] = ("permute", "window")
BATCH = 64
CALLS = 1000


@dataclass(frozen=True)
class Positions:
    """Seconds of one call, medians of `CALLS` calls. one_s: a random position. batch_s: `BATCH`
    consecutive positions from a random one on. first_s: the first call of an epoch, one position,
    median of 9 epochs.
    """

    order: OrderName
    samples: int
    first_s: float
    one_s: float
    batch_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_positions(totals: Sequence[int] = TOTALS, calls: int = CALLS) -> Iterator[Positions]:
    """Measure every order at every number of samples, in shards of 1,000."""
    for name in ORDERS:
        for total in totals:
            order, random = _order(name, total), np.random.default_rng(0)
            places = random.integers(total, size=(calls, 1))
            first = float(
                np.median([_seconds(order, places[:1], epoch) for epoch in range(9, 0, -1)])
            )
            one = _seconds(order, places)
            starts = random.integers(total - BATCH + 1, size=(calls, 1))
            yield Positions(name, total, first, one, _seconds(order, starts + np.arange(BATCH)))


def _order(name: OrderName, total: int) -> Order:
    shards = np.full(-(-total // SHARD_SAMPLES), SHARD_SAMPLES, dtype=np.int64)
    shards[-1] -= shards.sum() - total
    window = DataConfig().window
    return build_order(name, 0, total, keys=_no_keys, shard_samples=lambda: shards, window=window)


def _no_keys() -> Any:
    raise AssertionError("only the order `sort` reads keys")


def _seconds(order: Order, calls: np.ndarray, epoch: int = 1) -> float:
    """The median call of an epoch; `calls` int64 [calls, positions]."""
    spent = np.empty(len(calls))
    for number, positions in enumerate(calls):
        began = time.perf_counter()
        order.at(epoch, positions)
        spent[number] = time.perf_counter() - began
    return float(np.median(spent))
