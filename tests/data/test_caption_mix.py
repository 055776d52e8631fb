"""`data.caption_mix`: training draws the grain of a caption in shares; evaluation does not."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from svilm_fast.data.config import CaptionMixConfig
from svilm_fast.data.errors import DataError

GRAINS = {
    "coarse": "A dog.",
    "fine": ["A brown dog runs.", "A dog barks."],
    "fused": "A dog plays.",
}
MIX = CaptionMixConfig(coarse=1, fine=2, fused=1)


def _sample(captions, **record):
    return {"json": json.dumps({"captions": captions, **record}).encode()}


def _drawn(dataset, index, of=40):
    draw, found = dataset.draws([index], 0, 0)[0], Counter()
    for number in range(of):
        draw.augment[-1] = (number + 0.5) / of
        found[dataset.texts(index, draw).caption] += 1
    return found


def _mixed(make_dataset, *, count=3, **settings):
    replace = {
        0: _sample(GRAINS),
        1: _sample({name: GRAINS[name] for name in ("coarse", "fused")}),
        2: _sample(GRAINS, caption_weights={"fine": [3, 1]}),
    }
    return make_dataset(count, replace=replace, caption_mix=MIX, **settings)


def test_a_grain_is_drawn_in_its_share_among_those_a_sample_has(make_dataset):
    dataset = _mixed(make_dataset)
    assert _drawn(dataset, 0) == {
        "A dog.": 10,
        "A brown dog runs.": 10,
        "A dog barks.": 10,
        "A dog plays.": 10,
    }
    assert _drawn(dataset, 1) == {"A dog.": 20, "A dog plays.": 20}
    assert _drawn(dataset, 2)["A brown dog runs."] == 15


def test_captions_without_a_grain_are_drawn_as_without_a_mix(make_dataset):
    flat = {0: {"json": json.dumps({"caption": ["A", "B"], "caption_weights": [1, 3]}).encode()}}
    assert _drawn(make_dataset(1, replace=flat, caption_mix=MIX), 0) == {"A": 10, "B": 30}


def test_evaluation_reads_the_grain_of_data_captions(make_dataset):
    dataset = _mixed(make_dataset, train=False)
    assert dataset.batch([0]).captions == ["A dog plays."]
    assert dataset.fingerprint == _mixed(make_dataset, train=False).fingerprint


def test_the_mix_changes_the_fingerprint_and_no_mix_does_not(make_dataset):
    mixed = _mixed(make_dataset)
    plain = make_dataset(3, replace={0: _sample(GRAINS)})
    assert mixed.table.mixed({}) is mixed.table
    other = mixed.table.mixed({"fused": 1.0, "fine": 1.0})
    assert len({mixed.fingerprint, other.fingerprint, plain.fingerprint}) == 3


def test_the_grain_that_every_sample_has_needs_a_share(make_dataset):
    with pytest.raises(DataError, match=r"no share of 'fused' captions.*data.captions=coarse"):
        make_dataset(2, caption_mix=CaptionMixConfig(coarse=1))


def test_ranks_and_resuming_do_not_change_the_draw(make_dataset, batches_of_ranks):
    dataset = make_dataset(8, replace={i: _sample(GRAINS) for i in range(8)}, caption_mix=MIX)

    def captions(*arguments):
        found, states = batches_of_ranks(dataset, *arguments)
        batches = [each for ranks in found for each in ranks]
        return {
            (epoch, name): caption
            for epoch, batch in batches
            for name, caption in zip(batch.ids, batch.captions)
        }, states

    whole, states = captions(4, 1, 4)
    assert len(whole) == 2 * 8  # two epochs
    assert captions(2, 2, 4)[0] == whole
    assert len(set(whole.values())) > 2
    again, _ = captions(4, 1, 1, states[0])
    assert again.items() <= whole.items()
    assert again
