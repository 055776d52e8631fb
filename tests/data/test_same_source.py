"""`data.same_source`: which clips are of one video, and loaders that separate or mark them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.run import compress
from svilm_fast.data.compress.shard import CompressSettings, Scope
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, SampleJsonError
from svilm_fast.data.keys import sample_key
from svilm_fast.data.loader import build_loader
from svilm_fast.data.pack import pack
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.samples import open_split
from svilm_fast.data.source_ids import source_key, source_with, sources_facts

HOW = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 4, 50, 0)
SMALL = CompressSettings(HOW, PixelBlock(1, 1, 1), Scope.CLIP, 2, 8, 1)


def _of_sources(names, **more):
    return {
        i: {"json": json.dumps({"caption": f"clip {i}", "source_id": name, **more}).encode()}
        for i, name in enumerate(names)
    }


def test_the_name_of_a_source():
    assert source_key({"source_id": "a"}, "x", "s") == sample_key("a")
    assert source_key({"source_id": 7}, "x", "s") == sample_key("7")
    assert source_key({"source": {"id": "a", "start": 1}}, "x", "s") == sample_key("a")
    assert source_key({"source": "youtube"}, "x", "s") == sample_key("x")
    with pytest.raises(SampleJsonError, match=r"s: source_id=\[1\] must be a text"):
        source_key({"source_id": [1]}, "x", "s")


@pytest.mark.parametrize(
    ("sources", "together", "most"),
    [([], True, 0), ([1, 2, 3], True, 1), ([1, 1, 2], True, 2), ([1, 2, 1, 1], False, 3)],
)
def test_facts_of_sources(sources, together, most):
    assert sources_facts(np.array(sources, np.int64)) == {"together": together, "most": most}


def test_batches_hold_the_sources_where_they_are_masked(make_dataset):
    replace = _of_sources("aabca")
    batch = make_dataset(5, replace=replace, same_source="mask").batch([0, 2, 4, 3])
    ids = batch.source_ids.tolist()
    assert ids[0] == ids[2] == sample_key("a")
    assert len(set(ids)) == 3
    assert make_dataset(5, replace=replace).batch([0, 1]).source_ids is None
    alone = make_dataset(3, same_source="mask")  # samples that say nothing are of other sources
    assert len(set(alone.batch([0, 1, 2]).source_ids.tolist())) == 3


def test_no_global_batch_has_a_source_twice(make_dataset, batches_of_ranks):
    def batches(dataset, *arguments):
        found, states = batches_of_ranks(dataset, *arguments)
        return [[name for _, batch in ranks for name in batch.ids] for ranks in found], states

    names = [f"v{i // 3}" for i in range(24)]
    dataset = make_dataset(24, replace=_of_sources(names), same_source="separate")
    source = dict(zip(dataset.ids, names))
    whole, states = batches(dataset, 4, 1, 12)
    assert all(len({source[name] for name in batch}) == 4 for batch in whole)
    assert sorted(name for batch in whole[:6] for name in batch) == sorted(dataset.ids)  # an epoch
    assert batches(dataset, 2, 2, 12)[0] == whole
    assert batches(dataset, 2, 2, 7, json.loads(json.dumps(states[4])))[0] == whole[5:]
    with pytest.raises(DataError, match=r"training\.global_batch=4 and this run has 2"):
        batches(dataset, 2, 1, 12, states[4])
    other = make_dataset(24, replace=_of_sources(names))
    with pytest.raises(DataError, match=r"saved with data\.same_source=separate"):
        batches(other, 4, 1, 12, states[4])


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ("abab" * 3, {}, "do not follow one another.*--group"),
        ("a" * 6 + "bcdefg", {}, "up to 6 clips.*same_source=mask"),
        ("abcdefghijkl", {"order": "window"}, "does not go with data.order=window"),
    ],
)
def test_data_that_cannot_be_separated_are_refused(make_dataset, names, settings, message):
    dataset = make_dataset(12, replace=_of_sources(names), same_source="separate", **settings)
    with pytest.raises(DataError, match=message):
        build_loader(dataset.config, dataset, batch_size=2)


def test_segments_of_a_listed_video_are_of_one_source_also_when_packed(tmp_path, videos):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    (tmp_path / "list.csv").write_text(
        "video,caption,start,end\na,one,0,0.5\nb,two,0,0.5\na,three,0.5,1\n"
    )
    table = open_split(DataConfig(train=str(tmp_path / "list.csv")), "train")
    first, second, third = table.sources_at([0, 1, 2])
    assert first == third != second
    assert table.same_source == {"together": False, "most": 2}
    pack(str(tmp_path / "list.csv"), tmp_path / "out")
    packed = open_split(DataConfig(train=str(tmp_path / "out")), "train")
    assert packed.same_source["most"] == 2
    assert len(set(packed.sources_at([0, 1, 2]).tolist())) == 2
    compress(str(tmp_path / "list.csv"), tmp_path / "small", SMALL, workers=1)
    small = open_split(DataConfig(train=str(tmp_path / "small")), "train")
    assert small.sources_at([0, 1, 2]).tolist() == table.sources_at([0, 1, 2]).tolist()


def test_what_a_sample_says_of_its_source_stays_beside_that_of_its_clip():
    where = {"id": "own", "start": 1.0}
    assert source_with({}, where) == where
    assert source_with({"source": "youtube"}, where) == {"name": "youtube", **where}
    assert source_with({"source": {"id": "v", "start": 0, "licence": "x"}}, where) == {
        "id": "v",
        "start": 1.0,
        "licence": "x",
    }
