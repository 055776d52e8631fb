"""Shard paths with braces mean what WebDataset makes of them."""

from __future__ import annotations

import pytest

from svilm_fast.data import braces
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, MissingFileError
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import find_shards


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("s-{000000..000002}.tar", ["s-000000.tar", "s-000001.tar", "s-000002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
        ("{a,b{1,2}}.tar", ["a.tar", "b1.tar", "b2.tar"]),
        ("{a,}.tar", ["a.tar", ".tar"]),
        ("plain.tar", ["plain.tar"]),
        ("{one}.tar", ["{one}.tar"]),
        ("{a..b}{", ["{a..b}{"]),
        ("{{1..2}}", ["{1}", "{2}"]),
    ],
)
def test_expansion(path, paths):
    assert braces.expand(path) == paths


def test_a_mistyped_range_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(braces, "_MOST", 1000)
    with pytest.raises(DataError, match="more than 1000 paths"):
        braces.expand("s-{0..999999999999}.tar")


@pytest.mark.parametrize("path", ["{,}" * 12, "{a,b}" * 12, "{0..9}" * 4, "s-{0..1000}.tar"])
def test_work_is_limited_and_not_only_what_comes_of_it(monkeypatch, path):
    monkeypatch.setattr(braces, "_MOST", 1000)
    with pytest.raises(DataError, match="more than 1000 paths"):
        braces.expand(path)


@pytest.mark.parametrize("path", ["{,}" * 40, "{a,b}" * 1500, "{" * 1500])
def test_many_pairs_of_braces_are_refused_at_once(path):
    with pytest.raises(DataError, match="more than 32 pairs of braces"):
        braces.expand(path)


def test_every_shard_setting_takes_braces(make_shards):
    folder = make_shards(15)
    names = [f"{folder}/shard-{number:06d}.tar" for number in range(3)]
    assert find_shards(f"{folder}/shard-{{000000..000002}}.tar") == names
    assert find_shards(f"{folder}/shard-00000{{0,2}}.tar") == [names[0], names[2]]
    assert find_shards(f"{folder}/shard-00000{{0,2}}.*ar") == [names[0], names[2]]  # and globs
    where = f"{folder}/shard-{{000001..000002}}.tar"
    config = DataConfig(train=where, val=[names[0], where], test=where)
    assert [len(open_split(config, split)) for split in ("train", "val", "test")] == [10, 15, 10]


def test_a_missing_shard_of_a_range_is_named(make_shards):
    folder = make_shards(5)
    with pytest.raises(MissingFileError, match=r"data\.train: .*shard-000001\.tar' does not exist"):
        open_split(DataConfig(train=f"{folder}/shard-{{000000..000001}}.tar"), "train")


def test_a_file_with_braces_in_its_name_is_itself(make_shards):
    folder = make_shards(5)
    odd = folder / "x{1,2}.tar"
    (folder / "shard-000000.tar").rename(odd)
    assert find_shards(str(odd)) == [str(odd)]


def test_braces_in_remote_paths(make_shards):
    import fsspec

    folder = make_shards(10)
    memory = fsspec.filesystem("memory")
    for name in ("shard-000000.tar", "shard-000001.tar"):
        memory.pipe(f"/braces/{name}", (folder / name).read_bytes())
    where = "memory://braces/shard-{000000..000001}.tar"
    assert len(open_split(DataConfig(train=where), "train")) == 10
