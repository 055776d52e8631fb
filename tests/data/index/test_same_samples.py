"""An index gives the samples that reading every json gives: nothing is lost, added or changed."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index import store
from svilm_fast.data.keys import sample_key
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.shards import INDEX_SUFFIX, ShardReader, ShardWriter
from svilm_fast.data.world import render_world
from tests.data.index.listed import ListedTable, list_split

GRAINS = ("coarse", "fine", "fused")


def check_same(table: SampleTable, expected: ListedTable) -> None:
    """Compare everything that a table tells of its samples."""
    assert list(table.ids) == [sample.id for sample in expected.samples]
    assert table.keys.tolist() == [sample_key(name) for name in table.ids]
    for sample, old in zip(table, expected.samples, strict=True):
        assert sample.captions == old.captions
        assert sample.video == old.video
        assert sample.segment == old.segment
        assert sample.nouns == old.nouns
    for row in range(len(table)):
        assert table.read_metadata(row) == expected.read_metadata(row)
        assert table.read_video(row) == expected.read_video(row)
    assert list(table.captions()) == [c for sample in expected.samples for c in sample.captions]
    assert table.rejected == expected.rejected
    assert table.notes == expected.notes
    assert table.fingerprint == expected.fingerprint
    assert table.contents == expected.contents
    places = list(range(len(table)))[::-2]
    part = table.select(places)
    assert list(part) == [table[place] for place in places]
    chosen = ListedTable([expected.samples[place] for place in places], [], table.limits)
    assert (part.fingerprint, part.contents) == (chosen.fingerprint, chosen.contents)


def check_all_ways(config: DataConfig, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Compare in memory, mapped from the cache, and in another process."""
    for grain in GRAINS:
        of_grain = config.model_copy(update={"captions": grain})
        try:
            expected = list_split(of_grain, "train")
        except DataError as error:
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                open_split(of_grain, "train")
            continue
        check_same(open_split(of_grain, "train"), expected)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(store, "IN_MEMORY", 0)
        mapped = open_split(of_grain, "train")
        assert mapped.stored.path is not None
        check_same(mapped, expected)
        check_same(pickle.loads(pickle.dumps(mapped)), expected)
        monkeypatch.undo()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[DataConfig], None]:
    return lambda config: check_all_ways(config, monkeypatch, tmp_path / "cache")


def write_shards(folder: Path, records: list[Any], per_shard: int = 5) -> Path:
    """Shards of samples whose json is a record, bytes, or members by extension."""
    with ShardWriter(folder, max_samples=per_shard) as writer:
        for number, record in enumerate(records):
            members: dict[str, bytes] = {"mp4": f"video {number % 7}".encode() * 9}
            if isinstance(record, dict) and "members" in record:
                members = record["members"]
            else:
                data = record if isinstance(record, bytes) else json.dumps(record).encode()
                members["json"] = data
            writer.write(f"s{number:04d}", members)
    return folder


GRAINED: dict[str, Any] = {
    "captions": {"coarse": "A dog.", "fine": ["It runs.", "It sits."], "fused": "A dog runs."},
    "nouns": {"coarse": ["dog"], "fine": [["it"], []], "fused": [{"text": "dog", "span": [2, 5]}]},
}
ODD: list[Any] = [
    {"caption": "a dog"},
    {"caption": "a cat", "nouns": ["cat", "cat", "big cat"]},
    b"{",
    b"[1]",
    {"caption": None},
    {"caption": ""},
    {"caption": "\u200b"},
    {"caption": ["one", None, "two \u0007 three"], "nouns": [["one"], [], [{"text": "three"}]]},
    {"caption": "half \ud800 pair", "id": "half \ud800"},
    {"caption": 5},
    {"caption": "bad nouns", "nouns": 5},
    {"caption": "bad nouns", "nouns": [{"text": "x", "span": [1]}]},
    GRAINED,
    {"captions": {"coarse": "only coarse"}},
    {"captions": {"coarse": "", "fine": "fine", "fused": 3}},
    {"captions": {"coarse": "c", "fine": "f", "fused": "u"}, "nouns": {"fine": 7}},
    {"captions": {}},
    {"captions": "a plain text"},
    {"caption": "a part", "segment": [1.25, 2]},
    {"caption": "to the end", "segment": [0.1, None]},
    {"caption": "bad part", "segment": [3, 2]},
    {**GRAINED, "segment": ["x", 1]},
    {"captions": {"coarse": "one grain, bad part"}, "segment": 4},
    {"caption": "named", "id": "name"},
    {"caption": "named", "id": "name"},
    {"caption": "named", "id": "name~2"},
    {"caption": "named", "id": 17},
    {"captions": {"fine": "named"}, "id": "name"},
    {"caption": "named", "id": "name"},
    {"caption": "first name", "id": "s0000"},
    {"members": {"json": b'{"caption": "no video"}'}},
    {"members": {"mp4": b"no json"}},
    {"members": {"mp4": b"1", "txt": b"a text \xc3\xa9"}},
    {"members": {"mp4": b"1", "txt": b"\xff\xfe"}},
    {"members": {"webm": b"1", "json": b'{"id": "t"}', "txt": b"a text"}},
    {"caption": "x" * 3000},
]


@pytest.mark.parametrize("indexed", [True, False])
def test_odd_samples_in_shards(tmp_path, check, indexed):
    folder = write_shards(tmp_path / "odd", ODD)
    if not indexed:
        for path in folder.glob(f"*{INDEX_SUFFIX}"):
            path.unlink()
    config = DataConfig(train=str(folder), limits={"json_bytes": 2000})
    assert len(list_split(config, "train").samples) > 15
    check(config)


def test_a_damaged_json_in_a_shard(tmp_path, check):
    folder = write_shards(tmp_path / "damaged", ODD[:5] * 2)
    shard = sorted(folder.glob("*.tar"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'{"caption": "a cat"', b'{"caption": "a bat"'))
    check(DataConfig(train=str(folder)))


def test_the_world(tmp_path, check):
    render_world(
        tmp_path / "world", workers=1, progress=False, train=7, val=0, test=0, shard_size=3
    )
    check(DataConfig(train=str(tmp_path / "world/train")))


def test_ids_that_occur_again_in_any_order(tmp_path, check):
    names = ["a", "a", "a~2", "b~2", "b", "b", "b~2", "a~2~2", "a", "a~3", "c", "b~3", "b", "a~2"]
    folder = write_shards(tmp_path / "ids", [{"caption": n, "id": n} for n in names], per_shard=4)
    check(DataConfig(train=str(folder)))
    check(DataConfig(train=[str(folder), str(folder)]))


def test_several_sources_globs_and_braces(tmp_path, check, monkeypatch):
    write_shards(tmp_path / "one", ODD[:12])
    write_shards(tmp_path / "two/three", ODD[12:])
    rows = [{"video": f"v{n}.mp4", "caption": f"video {n}"} for n in range(3)]
    for row in rows:
        (tmp_path / row["video"]).write_bytes(b"x" * 10)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for train in (
        "one/*.tar",
        "one/shard-000000.tar",
        "{one,two/three}/shard-00000{0..1}.tar",
        ["two/three", "list.jsonl", "one/", str(tmp_path / "one")],
    ):
        config = DataConfig(train=train)
        expected = list_split(config, "train")
        check_same(open_split(config, "train"), expected)
    check(DataConfig(train=[str(tmp_path / "one"), str(tmp_path / "list.jsonl")]))


def test_lists(tmp_path, check):
    for name in ("a.mp4", "b.mp4", "deep/c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(name.encode() * 40)
    rows = [
        {"video": "a", "caption": "first", "views": 7, "tags": ["x", {"y": None}]},
        {"video": "c", "caption": "deep", "start": 1, "end": "0:02"},
        {"video": "a", "caption": "again", "start": 0.5},
        {"video": "gone", "caption": "missing"},
        {"video": "b", "caption": "\u200b"},
        {"video": "b", "caption": "bad time", "start": "soon"},
        {"video": "b", "captions": GRAINED["captions"], "nouns": GRAINED["nouns"]},
        {"video": "b", "captions": {"fine": "fine"}, "nouns": 3, "start": 2},
        {"video": "a", "caption": "again \u0001"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(DataConfig(train=str(path), videos=str(tmp_path / "videos")))
    (tmp_path / "list.csv").write_text('video,caption\nvideos/a.mp4,"a, ""b"""\nvideos/b.mp4,c\n')
    check(DataConfig(train=str(tmp_path / "list.csv")))


def test_digests_of_older_checkpoints_stay(tmp_path):
    table = open_split(DataConfig(train=str(write_shards(tmp_path / "old", ODD))), "train")
    # Made by the reader before indexes existed; checkpoints of that time hold such values.
    assert table.fingerprint == "b6b4783fb109855bf0e530f002092258"
    assert table.contents == "8271d71d4161af332f62e18ac7bd4d01"


def test_every_json_is_read_once(tmp_path, monkeypatch):
    folder, read = write_shards(tmp_path / "once", [GRAINED] * 6), []
    once = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda *a: read.append(a[3]) or once(*a))
    open_split(DataConfig(train=str(folder)), "train")
    assert sorted(read) == [f"s{n:04d}" for n in range(6)]
