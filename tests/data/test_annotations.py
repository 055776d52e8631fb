"""Labels, questions and answers reach batches from shards and lists, without reading the json."""

from __future__ import annotations

import json
import pickle

import pytest

from svilm_fast.data.annotations import Annotations, from_column, to_columns
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import AnnotationError
from svilm_fast.data.loader import build_loader
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import SampleTable, open_split


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, (None, None, None)),
        ({"label": "", "question": " ", "answers": [], "answer": ""}, (None, None, None)),
        ({"label": 0}, (0, None, None)),
        ({"label": "Apply &amp; go "}, ("Apply & go", None, None)),
        ({"label": [3, "walk"]}, ([3, "walk"], None, None)),
        ({"question": "who?", "answer": "a man"}, (None, "who?", ["a man"])),
        ({"answers": ["2", 2, "two"], "answer": "no"}, (None, None, ["2", "2", "two"])),
    ],
)
def test_what_is_read(record, expected):
    columns = to_columns(record)
    found = tuple(from_column(name, value.decode(), "s") for name, value in columns.items())
    assert found == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": 0.5}, r"s-1: label=0\.5 is not read: expected a text, a whole number"),
        ({"label": True}, "label=True"),
        ({"label": {"found": 1}}, "label={'found': 1}"),
        ({"label": ["a", None]}, "label="),
        ({"label": ["a", " "]}, "label="),
        ({"question": ["who?"]}, "question=.*expected a text$"),
        ({"question": 7}, "question=7"),
        ({"answers": ["a", 0.5]}, "answers=.*a list of texts"),
        ({"answer": {"a": 1}}, "answers="),
    ],
)
def test_other_kinds_are_refused_when_they_are_read(record, message):
    (name,) = (name for name, value in to_columns(record).items() if value)
    with pytest.raises(AnnotationError, match=message):
        from_column(name, to_columns(record)[name].decode(), "s-1")


def _members(**record):
    return {"json": json.dumps({"caption": "A dog.", **record}).encode()}


ASKED = {"question": "what runs?", "answers": ["dog", "a dog"]}
RECORDS = {0: _members(label=4), 1: _members(**ASKED), 3: _members(label=["run", "dog"])}


def _opened(folder, **settings):
    config = DataConfig(train=str(folder), **settings)
    return ClipDataset(
        config,
        "train",
        prepare_tokenizer(config),
        True,
        frames=2,
        image_size=16,
        annotations=True,
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_batches_carry_them(make_shards, workers, monkeypatch):
    dataset = _opened(make_shards(4, replace=RECORDS), workers=workers, unit=2)
    monkeypatch.setattr(SampleTable, "read_metadata", lambda *_: pytest.fail("the json is read"))
    with build_loader(dataset.config, dataset, batch_size=4) as loader:
        batch = next(iter(loader))
    rows = [batch.ids.index(f"s{n:04d}") for n in range(4)]
    assert [batch.labels[row] for row in rows] == [4, None, None, ["run", "dog"]]
    assert [batch.questions[row] for row in rows] == [None, "what runs?", None, None]
    assert [batch.answers[row] for row in rows] == [[], ["dog", "a dog"], [], []]
    assert dataset.labels == [4, None, None, ["run", "dog"]]
    copied = pickle.loads(pickle.dumps(batch))
    joined = ClipBatch.joined([batch, copied])
    assert (joined.labels, joined.answers) == (batch.labels * 2, batch.answers * 2)


def test_an_unreadable_label_costs_the_sample_only_where_labels_are_read(make_shards):
    folder = make_shards(5, replace={2: _members(label={"score": 0.5})})
    config = DataConfig(train=str(folder), workers=0)
    table = open_split(config, "train")
    assert len(table) == 5
    assert table.annotations(0) == Annotations(None, None, [])
    with pytest.raises(AnnotationError, match="s0002: label="):
        table.label(2)
    plain = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
    assert plain.batch([2]).labels == []
    dataset = _opened(folder, workers=0)
    with build_loader(dataset.config, dataset, batch_size=4) as loader:
        batch = next(iter(loader))
        batch = next(loader.forever())
        skips = dict(loader.skips.skipped)
    assert "s0002" not in batch.ids
    assert set(skips) <= {"s0002"}


def test_lists_and_packed_lists_give_the_same(tmp_path, videos):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    path = tmp_path / "list.csv"
    path.write_text(
        "video,caption,Label,question,answer\n"
        "a,A dog.,7,,\nb,A cat.,,who sits?,a cat\nc,A cup.,,,\n"
    )
    expected = [
        Annotations("7", None, []),
        Annotations(None, "who sits?", ["a cat"]),
        Annotations(None, None, []),
    ]
    pack(str(path), tmp_path / "shards")
    for source in (path, tmp_path / "shards"):
        table = open_split(DataConfig(train=str(source)), "train")
        assert [table.annotations(place) for place in range(3)] == expected
    assert list(table.select([1, 0]).labels()) == [None, "7"]


def test_packing_loses_no_question(tmp_path, videos):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    rows = [
        {"video": "a", "caption": "x", "question": "who?"},
        {"video": "a", "caption": "y", "question": "what?"},
        {"video": "b", "caption": "x", "label": 1},
        {"video": "b", "caption": "y", "label": 1},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = pack(str(tmp_path / "list.jsonl"), tmp_path / "shards")
    (refused,) = report.refused
    assert "2 lines describe it with different question" in refused.message
    assert open_split(DataConfig(train=str(tmp_path / "shards")), "train").label(0) == 1
