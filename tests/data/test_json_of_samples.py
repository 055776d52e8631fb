"""JSON that programs read differently is refused; every other key and value is handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import ListFormatError, SampleJsonError, ShardError
from svilm_fast.data.lists import read_list
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import INDEX_SUFFIX, ShardWriter, load_index, parse_json

BROKEN = [
    ('{"caption": "a", "caption": "b"}', "the key 'caption' occurs twice"),
    ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
    ('{"a": [NaN]}', "NaN is not a finite number"),
    ('{"a": -Infinity}', "-Infinity is not a finite number"),
    ('{"a": 1e999}', "1e999 is not a finite number"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_ambiguous_json_is_refused(text, message, tmp_path):
    with pytest.raises(SampleJsonError, match=f"s1.json: not valid JSON .{message}"):
        parse_json(text.encode(), "s1.json")
    path = tmp_path / "list.jsonl"
    path.write_text('{"video": "a.mp4"}\n{"video": "b.mp4", ' + text[1:] + "\n")
    with pytest.raises(ListFormatError, match=f"line 2: not valid JSON .{message}"):
        read_list(str(path))


def test_a_shard_loses_only_the_sample_with_such_json(tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("good", {"mp4": b"v", "json": b'{"caption": "a dog"}'})
        writer.write("bad", {"mp4": b"v", "json": b'{"caption": "a dog", "score": NaN}'})
    table = open_split(DataConfig(train=str(tmp_path / "shards")), "train")
    assert list(table.ids) == ["good"]
    assert [skip.sample.rpartition("/")[2] for skip in table.rejected] == ["bad"]


@pytest.mark.parametrize(("change", "message"), [(-1, "overlap"), (1 << 20, "outside the shard")])
def test_a_tar_index_with_members_that_overlap_or_lie_outside(tmp_path, change, message):
    with ShardWriter(tmp_path) as writer:
        for name in ("a", "b"):
            writer.write(name, {"mp4": bytes(600), "json": b"{}"})
    shard = str(writer.paths[0])
    stored = json.loads(Path(shard + INDEX_SUFFIX).read_bytes())
    assert set(load_index(shard).samples) == {"a", "b"}
    first = stored["samples"]["a"]["mp4"]
    stored["samples"]["b"]["mp4"][0] = first[0] + first[1] + change
    (tmp_path / (writer.paths[0].name + INDEX_SUFFIX)).write_text(json.dumps(stored))
    with pytest.raises(ShardError, match=message):
        load_index(shard)


EXTRA = {
    "questions": [
        {"question": "what spins?", "answer": "a square", "type": "what"},
        {"question": "how many?", "answer": ["2", "two"], "type": "count"},
    ],
    "source": {"name": "world", "views": [1, 2.5, None, True]},
    "title": "spin",
}
CAPTIONS = [
    ({"caption": "a red square spins"}, "coarse"),
    ({"captions": ["a red square spins", "it is red"]}, "coarse"),
    ({}, "none"),
]


def _metadata(source, videos, grain):
    config = DataConfig(train=str(source), videos=videos and str(videos), captions=grain)
    dataset = ClipDataset(
        config, "train", prepare_tokenizer(config), frames=2, image_size=16, nouns=False
    )
    (found,) = dataset.batch([0]).metadata
    return {name: found.get(name) for name in EXTRA}


@pytest.mark.parametrize(("captions", "grain"), CAPTIONS)
def test_further_keys_reach_the_batch(captions, grain, tmp_path, videos):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(videos[0])
    record = {"video": "a.mp4", **captions, **EXTRA}
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert _metadata(path, tmp_path / "v", grain) == EXTRA
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("a", {"mp4": videos[0], "json": json.dumps(captions | EXTRA).encode()})
    assert _metadata(tmp_path / "shards", None, grain) == EXTRA
    config = DataConfig(captions=grain)
    pack(str(path), tmp_path / "packed", config=config, videos=str(tmp_path / "v"), workers=1)
    assert _metadata(tmp_path / "packed", None, grain) == EXTRA
