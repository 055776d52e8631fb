"""A selected or shuffled table keeps its samples when nouns are found for it."""

from __future__ import annotations

import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.commands import index
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardWriter


@pytest.fixture
def config(tmp_path) -> DataConfig:
    for name, first in (("a", 0), ("b", 10)):
        with ShardWriter(tmp_path / name) as writer:
            for number in range(first, first + 6):
                record = f'{{"caption": "dog {number}"}}'.encode()
                writer.write(f"s{number}", {"mp4": b"video", "json": record})
    return DataConfig(train=str(tmp_path / "a"), val=str(tmp_path / "b"))


@pytest.mark.parametrize("stored", [True, False])
def test_nouns_are_found_for_the_same_samples(config, stored):
    if stored:
        index([config.train], {}, nouns=False)
    table = open_split(config, "train").select([4, 1]).shuffled(lambda places: 5 - places)
    tokenizer = prepare_tokenizer(config)
    dataset = ClipDataset(config, "train", tokenizer, True, frames=2, image_size=16, table=table)
    assert list(dataset.ids) == ["s4", "s1"]
    assert [each.captions for each in dataset.table] == [("dog 1",), ("dog 4",)]
    assert [each.nouns for each in dataset.table] == [(("dog",),)] * 2


def test_nouns_of_other_samples_are_refused(config):
    index([config.train], {}, nouns=False)
    table = open_split(config, "train")
    with pytest.raises(DataError, match=r"other samples than data\.val='\S+/b': open it with"):
        table.with_nouns(config, "val")
