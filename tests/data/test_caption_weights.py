"""`caption_weights`: training draws a sample's captions in proportion; evaluation does not."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from svilm_fast.data.captions import pick_captions
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import DRAWS
from svilm_fast.data.errors import CaptionWeightError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split

CAPTIONS = ["A dog runs.", "A cat sits.", "A bird sings."]


def _sample(**record):
    return {"json": json.dumps({"caption": CAPTIONS, **record}).encode()}


def _drawn(dataset, index):
    """The captions that 40 evenly spread random numbers give."""
    draw, found = dataset.draws([index], 0, 0)[0], Counter()
    for number in range(40):
        draw.augment[-1] = (number + 0.5) / 40
        found[dataset.texts(index, draw).caption] += 1
    return found


def test_training_draws_in_proportion(make_dataset):
    dataset = make_dataset(2, replace={0: _sample(caption_weights=[1, 0, 3.0])})
    assert _drawn(dataset, 0) == {"A dog runs.": 10, "A bird sings.": 30}


def test_without_weights_the_draw_is_the_one_of_before(make_dataset):
    dataset = make_dataset(3, replace={0: _sample(), 1: _sample(caption_weights=[2, 2, 4])})
    for epoch in range(20):
        draw = dataset.draws([0], 0, epoch)[0]
        number = float(draw.augment[DRAWS])
        assert dataset.texts(0, draw).caption == CAPTIONS[int(3 * number)]
    assert list(_drawn(dataset, 1).values()) == [10, 10, 20]


def test_evaluation_takes_the_first(make_dataset):
    dataset = make_dataset(2, train=False, replace={0: _sample(caption_weights=[0, 0, 1])})
    assert dataset.batch([0]).captions == ["A dog runs."]


def test_numbers_at_the_ends_give_captions_with_a_weight(make_dataset):
    dataset = make_dataset(2, replace={0: _sample(caption_weights=[0, 1e-9, 0])})
    draw = dataset.draws([0], 0, 0)[0]
    for number in (0.0, np.nextafter(np.float32(1), np.float32(0))):
        draw.augment[-1] = number
        assert dataset.texts(0, draw).caption == "A cat sits."


@pytest.mark.parametrize(
    ("weights", "last"),
    [([5e-324] * 3, "A bird sings."), ([5e-324, 5e-324, 0], "A cat sits.")],
)
def test_the_smallest_weights_give_captions_too(make_dataset, weights, last):
    dataset = make_dataset(2, replace={0: _sample(caption_weights=weights)})
    draw = dataset.draws([0], 0, 0)[0]
    draw.augment[-1] = np.nextafter(np.float32(1), np.float32(0))
    assert dataset.texts(0, draw).caption == last


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 numbers in caption_weights for 3 captions"),
        (3, "1 number in caption_weights for 3 captions"),
        ([1, -1, 1], "none of them negative"),
        ([1, True, 1], "none of them negative"),
        ([1, "x", 1], "none of them negative"),
        ([1, None, 1], "none of them negative"),
        ([1, float("nan"), 1], "none of them negative"),
        ([1, 10**400, 1], "none of them negative"),
        ([0, 0, 0], "sum above 0"),
        ([1e308, 1e308, 1], "sum above 0 that is finite"),
    ],
)
def test_other_weights_are_refused_with_the_sample(weights, message):
    with pytest.raises(CaptionWeightError, match=f"clip-7: .*{message}"):
        pick_captions({"caption": CAPTIONS, "caption_weights": weights}, "fused", "clip-7")


def test_weights_stay_with_their_captions():
    record = {"caption": ["a dog", "", "a cat"], "caption_weights": [1, 5, 2]}
    assert pick_captions(record, "fused", "s").weights == (1.0, 2.0)
    grains = {"captions": {"fine": ["a", "b"], "coarse": "c"}, "caption_weights": {"fine": [1, 3]}}
    assert pick_captions(grains, "fine", "s").weights == (1.0, 3.0)
    assert pick_captions(grains, "coarse", "s").weights is None
    assert pick_captions({"caption": "a dog", "caption_weights": "2.5"}, "fused", "s").weights


def test_the_fingerprint_knows_weights(make_shards):
    def fingerprint(**record):
        folder = make_shards(2, replace={0: _sample(**record)})
        return open_split(DataConfig(train=str(folder)), "train").fingerprint

    found = [fingerprint(**w) for w in ({}, {"caption_weights": [1, 2, 3]})]
    found.append(fingerprint(caption_weights=[1, 2, 4]))
    assert len(set(found)) == 3


def test_packing_joins_the_weights_of_a_videos_lines(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    (tmp_path / "list.csv").write_text(
        "video,caption,caption_weights\na.mp4,A dog.,2.5\na.mp4,A cat.,\na.mp4,A cup.,0.5\n"
    )
    pack(str(tmp_path / "list.csv"), tmp_path / "out")
    table = open_split(DataConfig(train=str(tmp_path / "out")), "train")
    assert table[0].captions == ("A dog.", "A cat.", "A cup.")
    assert table.caption_weights(table.captions_of(0)).tolist() == [2.5, 1.0, 0.5]
