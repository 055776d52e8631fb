"""Resume equality: the same samples in the same order, whatever changes at the stop."""

from __future__ import annotations

import json
import random
from itertools import chain, islice

import numpy as np
import pytest
import torch

from svilm_fast.data.errors import DataError
from svilm_fast.data.loader import build_loader, training_requests
from svilm_fast.data.order import build_order

ORDERS = ("permute", "window", "sort")
GLOBAL_BATCH = 12
STOPS = 9  # an epoch has 4 batches


@pytest.fixture
def open_order(make_dataset, monkeypatch):
    """Opens 53 samples in 11 shards in an order; their videos are not decoded."""

    def build(order, **settings):
        dataset = make_dataset(53, order=order, window=3, **settings)
        image = np.zeros((4, 24, 24, 3), dtype=np.uint8)
        monkeypatch.setattr(
            dataset, "_frames", lambda index, choices: ([(image, np.arange(4))], ())
        )
        return dataset

    return build


def _ids(dataset, steps, *, ranks, state=None, seed=4):
    """The ids of `steps` global batches and the state behind them, on `ranks` ranks."""
    parts, states = [], []
    for rank in range(ranks):
        loader = build_loader(
            dataset.config,
            dataset,
            batch_size=GLOBAL_BATCH // ranks,
            rank=rank,
            world_size=ranks,
            seed=seed,
            state=state,
        )
        with loader:
            parts.append([batch.ids for batch in islice(loader.forever(), steps)])
            states.append(json.loads(json.dumps(loader.state_dict())))
    return [list(chain(*step)) for step in zip(*parts)], states[0]


@pytest.mark.parametrize("order", ORDERS)
def test_any_stop_and_any_change_of_ranks_gives_the_same_samples(open_order, order):
    dataset = open_order(order)
    expected, _ = _ids(dataset, STOPS + 3, ranks=1)
    draw = random.Random(order)
    for stop in range(STOPS + 1):
        before, after = draw.choices((1, 2, 3, 4, 6), k=2)
        first, state = _ids(dataset, stop, ranks=before)
        then, _ = _ids(dataset, 3, ranks=after, state=state)
        assert first + then == expected[: stop + 3], (stop, before, after)


@pytest.mark.parametrize("order", ORDERS)
def test_two_hundred_stops_in_many_epochs_give_the_same_places(order):
    """Places only, as the workers get them: 210 distinct stops of 300 steps in 25 epochs."""
    total, steps = 149, 300

    def requests(step, ranks):
        epoch, batch = divmod(step, total // GLOBAL_BATCH)
        sizes = np.array([20, 1, 40, 38, 25, 25])
        made = build_order(
            order,
            7,
            total,
            keys=lambda: torch.arange(total) * 7919,
            shard_samples=lambda: sizes,
            window=2,
        )
        size = GLOBAL_BATCH // ranks
        parts = [
            training_requests(
                made,
                total,
                epoch=epoch,
                position=batch * GLOBAL_BATCH,
                batch_size=size,
                rank=rank,
                world_size=ranks,
            )
            for rank in range(ranks)
        ]
        for step_parts in zip(*parts):
            assert len({part.epoch for part in step_parts}) == 1
            yield (
                step_parts[0].epoch,
                [places[0] for part in step_parts for places in part.candidates],
            )

    expected = list(islice(requests(0, 1), steps + 4))
    epochs = {epoch for epoch, _ in expected}
    assert len(epochs) == 26
    for epoch in range(25):  # no sample twice
        seen = [place for number, places in expected if number == epoch for place in places]
        assert len(set(seen)) == len(seen) == 144
    draw = random.Random(order)
    for stop in draw.sample(range(steps), 210):
        ranks = draw.choice((1, 2, 3, 4, 6, 12))
        assert list(islice(requests(stop, ranks), 4)) == expected[stop : stop + 4], (stop, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_any_change_of_workers_gives_the_same_samples(make_dataset, order):
    dataset = make_dataset(53, order=order, window=3, unit=3)
    expected, _ = _ids(dataset, 8, ranks=1)
    changes = ((0, 0, 1, 1), (1, 1, 2, 2), (2, 2, 0, 3), (3, 0, 2, 2), (4, 1, 0, 3), (5, 2, 1, 1))
    for stop, before, after, ranks in changes:
        dataset.config.workers = before
        first, state = _ids(dataset, stop, ranks=1)
        dataset.config.workers = after
        then, _ = _ids(dataset, 3, ranks=ranks, state=state)
        assert first + then == expected[: stop + 3]


def test_a_state_of_another_order_is_refused_with_the_setting_to_change(open_order):
    _, state = _ids(open_order("permute"), 1, ranks=1)
    with pytest.raises(DataError, match=r"data\.order=permute .* set data\.order=permute"):
        _ids(open_order("sort"), 1, ranks=1, state=state)
    _, state = _ids(open_order("window"), 1, ranks=1)
    dataset = open_order("window")
    dataset.config.window = 4
    with pytest.raises(DataError, match=r"data\.window=3 .* this run has 4"):
        _ids(dataset, 1, ranks=1, state=state)


def test_window_is_refused_where_the_same_samples_lie_in_other_shards(open_order):
    dataset = open_order("window")
    _, state = _ids(dataset, 1, ranks=1)
    with pytest.raises(DataError, match="other numbers of samples in the shards"):
        _ids(dataset, 1, ranks=1, state={**state, "shards": "0" * 16})


def test_a_state_from_before_there_were_orders_means_sort(open_order):
    dataset = open_order("sort")
    expected, _ = _ids(dataset, 4, ranks=1)
    _, state = _ids(dataset, 2, ranks=1)
    old = {name: value for name, value in state.items() if name != "order"} | {"version": 1}
    assert _ids(dataset, 2, ranks=2, state=old)[0] == expected[2:]
    with pytest.raises(DataError, match=r"set data\.order=sort"):
        _ids(open_order("permute"), 1, ranks=1, state=old)
    with pytest.raises(DataError, match="version 3"):
        _ids(dataset, 1, ranks=1, state={**state, "version": 3})


def test_one_percent_of_corrupt_samples_costs_no_other_sample(make_dataset):
    broken = {n: {"mp4": b"broken"} for n in (17, 44)}
    for order in ORDERS:
        dataset = make_dataset(60, replace=broken, order=order, window=3)
        loader = build_loader(dataset.config, dataset, batch_size=6, seed=2)
        seen = list(chain.from_iterable(batch.ids for batch in loader))
        assert len(seen) == 60
        # The two places are filled by samples of other batches, so these occur twice.
        assert set(seen) == set(dataset.ids) - {"s0017", "s0044"}
