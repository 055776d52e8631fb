"""The order of samples is a function of seed, epoch and position, for any number of ranks."""

from __future__ import annotations

import json
from itertools import chain, islice

import numpy as np
import pytest
import torch

from svilm_fast.data.errors import DataError
from svilm_fast.data.loader import build_loader


def _joined(parts):
    return list(chain.from_iterable(parts))


def _ids(dataset, *, batch_size, steps, rank=0, world_size=1, seed=3):
    loader = build_loader(
        dataset.config, dataset, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed
    )
    return [batch.ids for batch in islice(loader.forever(), steps)]


def test_global_order_is_the_same_on_one_two_and_three_ranks(make_dataset):
    dataset = make_dataset(20)
    alone = _ids(dataset, batch_size=6, steps=7)
    for world_size in (2, 3):
        parts = [
            _ids(dataset, batch_size=6 // world_size, steps=7, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        joined = [_joined(part[step] for part in parts) for step in range(7)]
        assert joined == alone


def test_an_epoch_visits_no_sample_twice_and_epochs_and_seeds_differ(make_dataset):
    dataset = make_dataset(20)
    steps = _ids(dataset, batch_size=5, steps=8)
    first, second = _joined(steps[:4]), _joined(steps[4:])
    assert sorted(first) == sorted(second) == sorted(dataset.ids)
    assert first != second
    assert first != _joined(_ids(dataset, batch_size=5, steps=4, seed=4))


def test_pixels_depend_on_seed_epoch_and_sample_not_on_the_number_of_ranks(make_dataset):
    dataset = make_dataset(12)
    whole = next(iter(build_loader(dataset.config, dataset, batch_size=4, seed=1)))
    second = next(
        iter(build_loader(dataset.config, dataset, batch_size=2, rank=1, world_size=2, seed=1))
    )
    assert torch.equal(whole.frames[2:], second.frames)
    assert torch.equal(whole.noun_tokens[2:], second.noun_tokens)
    other_epoch = dataset.batch([0, 1, 2, 3], seed=1, epoch=1)
    assert not torch.equal(dataset.batch([0, 1, 2, 3], seed=1).frames, other_epoch.frames)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resume_continues_with_the_very_next_batch(make_dataset, stop):
    dataset = make_dataset(17)
    config = dataset.config
    expected = list(islice(build_loader(config, dataset, batch_size=4, seed=9).forever(), 10))
    loader = build_loader(config, dataset, batch_size=4, seed=9)
    stream = loader.forever()
    for _ in range(stop):
        next(stream)
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = build_loader(config, dataset, batch_size=4, seed=9, state=state)
    for left, right in zip(expected[stop:], resumed.forever()):
        assert left.ids == right.ids
        assert torch.equal(left.frames, right.frames)
        assert torch.equal(left.text_tokens, right.text_tokens)
        assert torch.equal(left.frame_index, right.frame_index)


def test_resume_on_other_rank_counts_keeps_the_coverage_of_the_epoch(make_dataset):
    dataset = make_dataset(18)
    loader = build_loader(dataset.config, dataset, batch_size=6, seed=2)
    stream = iter(loader)
    seen = list(next(stream).ids)
    state = loader.state_dict()
    for rank in range(2):
        resumed = build_loader(
            dataset.config, dataset, batch_size=3, rank=rank, world_size=2, seed=2, state=state
        )
        for batch in resumed:
            seen += batch.ids
    assert sorted(seen) == sorted(dataset.ids)


def test_iterating_again_in_mid_epoch_goes_on_where_it_stopped(make_dataset):
    dataset = make_dataset(12)
    whole = _ids(dataset, batch_size=4, steps=3)
    loader = build_loader(dataset.config, dataset, batch_size=4, seed=3)
    for batch in loader:
        assert batch.ids == whole[0]
        break
    assert [batch.ids for batch in loader] == whole[1:]
    assert (loader.epoch, loader.position, len(loader)) == (1, 0, 3)


def test_resume_with_another_seed_or_other_data_is_refused(make_dataset):
    dataset = make_dataset(8)
    state = build_loader(dataset.config, dataset, batch_size=2, seed=1).state_dict()
    with pytest.raises(DataError, match="seed 1 and this run has 2"):
        build_loader(dataset.config, dataset, batch_size=2, seed=2, state=state)
    state = {**state, "fingerprint": "0"}
    with pytest.raises(DataError, match="fingerprint"):
        build_loader(dataset.config, dataset, batch_size=2, seed=1, state=state)


def test_evaluation_ranks_split_all_samples_in_order(make_dataset):
    dataset = make_dataset(11, train=False)
    ids = []
    for rank in range(3):
        loader = build_loader(dataset.config, dataset, batch_size=2, rank=rank, world_size=3)
        batches = list(loader)
        assert len(batches) == len(loader)
        ids += _joined(batch.ids for batch in batches)
        assert [batch.ids for batch in loader] == [batch.ids for batch in batches]
    assert ids == list(dataset.ids)


def test_too_few_samples_for_a_global_batch_is_said(make_dataset):
    dataset = make_dataset(5)
    with pytest.raises(DataError, match="5 samples, fewer than the global batch of 6"):
        build_loader(dataset.config, dataset, batch_size=3, rank=0, world_size=2)


def test_sizes_of_shards_are_counted_once(make_dataset, monkeypatch):
    dataset = make_dataset(23, order="window", window=2)
    shards = dataset.table.stored.columns["shard"]
    expected = np.unique(shards, return_counts=True)[1]
    rows = []
    table = type(dataset.table)
    counted = table._rows
    monkeypatch.setattr(table, "_rows", lambda self: rows.append(1) or counted(self))
    part = dataset.table.select(range(7, 23))  # also without what the whole table has kept
    for _ in range(3):
        assert dataset.table.shard_samples().tolist() == expected.tolist()
        assert (
            part.shard_samples().tolist() == np.unique(shards[7:23], return_counts=True)[1].tolist()
        )
    assert len(rows) == 1
    part = dataset.table.select(range(7, 23))
    assert part.shard_samples().sum() == 16
    assert dataset.table.select([]).shard_samples().tolist() == []
