"""Where an index lies, who makes it, and when it no longer describes the data."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import shlex
import shutil
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.data import files
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index import part, store
from svilm_fast.data.index.columns import read_columns, write_columns
from svilm_fast.data.index.commands import index
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardWriter


def write(folder: Path, count: int = 7, *, text: str = "a dog", start: int = 0) -> Path:
    with ShardWriter(folder, f"part{start}", max_samples=3) as writer:
        for number in range(start, start + count):
            record = json.dumps({"caption": f"{text} {number}"}).encode()
            writer.write(f"s{number}", {"mp4": b"video", "json": record})
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "shards")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache; every source is large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 6)
    return tmp_path / "cache" / "svilm-fast" / "indexes"


@pytest.fixture
def shards_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are indexed from now on."""
    read: list[str] = []

    def load(path: str, members: int):
        read.append(path)
        return original(path, members)

    original = part.load_index
    monkeypatch.setattr(part, "load_index", load)
    return read


def captions(folder: Path | str, **settings) -> list[str]:
    return list(open_split(DataConfig(train=str(folder), **settings), "train").captions())


together = files.read_ranges


def run(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_small_source_writes_nothing(shards, cache, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", 7)
    before = sorted(shards.iterdir())
    assert len(captions(shards)) == 7
    assert sorted(shards.iterdir()) == before
    assert not cache.exists()


def test_a_large_source_is_indexed_once_in_the_cache(shards, cache, shards_read, caplog):
    with caplog.at_level(logging.WARNING):
        first = captions(shards)
    before = sorted(shards.iterdir())
    assert f"`svilm data index {shards} --no-nouns`" in caplog.text
    assert [path.suffix for path in sorted(cache.iterdir())] == [".bin", ".lock"]
    shards_read.clear()
    caplog.clear()
    assert captions(shards) == first == [f"a dog {n}" for n in range(7)]
    assert not shards_read
    assert not caplog.text
    assert sorted(shards.iterdir()) == before


@pytest.mark.parametrize("change", ["more", "content", "fewer"])
def test_a_cached_index_of_older_data_is_made_again(shards, cache, change):
    captions(shards)
    if change == "more":
        write(shards, 2, start=50)
    elif change == "content":  # of the same size
        shutil.rmtree(shards)
        write(shards, text="a cat")
    else:
        sorted(shards.glob("*.tar"))[1].unlink()
    found = captions(shards)
    assert len(found) == {"more": 9, "content": 7, "fewer": 4}[change]
    assert ("a cat 0" in found) == (change == "content")


def test_a_list_that_changed_in_one_letter_is_indexed_again(tmp_path, cache):
    path = tmp_path / "list.jsonl"
    (tmp_path / "v.mp4").write_bytes(b"x")
    for word in ("dog", "cat"):
        path.write_text(
            "".join(f'{{"video": "v.mp4", "caption": "{word} {n}"}}\n' for n in "1234567")
        )
        assert captions(path)[0] == f"{word} 1"


def test_the_command_indexes_beside_the_shards(shards, cache, shards_read):
    expected = captions(shards)
    out = run("data", "index", shards)
    own = [path for path in shards.iterdir() if path.name.startswith(".svilm-index-")]
    assert len(own) == 1
    assert str(own[0]) in out.replace("\n", "")
    assert "7 samples, 7 captions" in out
    shutil.rmtree(cache)
    shards_read.clear()
    table = open_split(DataConfig(train=str(shards)), "train", nouns=True)
    assert list(table.captions()) == expected
    assert table[0].nouns == (("dog",),)
    assert not shards_read
    assert not cache.exists()


def test_an_index_moves_with_its_folder(shards, cache, tmp_path, shards_read, monkeypatch):
    run("data", "index", shards)
    shards.rename(tmp_path / "elsewhere")
    shards_read.clear()
    assert len(captions(tmp_path / "elsewhere")) == 7
    monkeypatch.chdir(tmp_path)
    table = open_split(DataConfig(train="elsewhere"), "train")
    assert table.video(0).path == "elsewhere/part0-000000.tar"
    assert table.read_video(6) == b"video"
    assert not shards_read


def test_an_own_index_of_other_data_is_an_error_that_names_the_command(shards, tmp_path):
    run("data", "index", shards)
    write(shards, 2, start=50)
    with pytest.raises(DataError, match="make it again with") as caught:
        captions(shards)
    command = str(caught.value).split("`")[1]
    run(*shlex.split(command)[1:])
    run("data", "index", shards)
    assert len(captions(shards)) == 9
    shard = sorted(shards.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match=r"part0-000000\.tar has \d+ bytes, \d+ then"):
        captions(shards)


@pytest.mark.parametrize(
    "settings",
    [
        {"nouns": {"extractor": "none"}},
        {"nouns": {"phrases": False}},
        {"limits": {"json_bytes": 1000, "shard_members": 99}},
        {"videos": "."},
    ],
)
def test_the_named_command_makes_the_index_that_is_looked_for(
    shards, cache, settings, caplog, shards_read
):
    with caplog.at_level(logging.WARNING):
        open_split(DataConfig(train=str(shards), **settings), "train", nouns=True)
    run(*shlex.split(caplog.text.split("`")[1])[1:])
    shutil.rmtree(cache)
    shards_read.clear()
    open_split(DataConfig(train=str(shards), **settings), "train", nouns=True)
    assert not shards_read


def test_equal_data_gives_equal_bytes(shards):
    run("data", "index", shards)
    own = next(shards.glob(".svilm-index-*"))
    before = own.read_bytes()
    run("data", "index", shards)
    assert own.read_bytes() == before


def test_what_a_command_cannot_do_is_said():
    result = CliRunner().invoke(app, ["data", "index", "memory://nowhere/shards"])
    assert result.exit_code != 0
    with pytest.raises(DataError, match="extractor"):
        run("data", "index", "x", "--extractor", "magic")


@pytest.mark.parametrize("damage", [b"", b"SVILMIX1", b"SVILMIX1" + bytes(8) + b"{}", b"x" * 99])
def test_a_damaged_index(shards, cache, damage):
    captions(shards)
    cached = next(cache.glob("*.bin"))
    cached.write_bytes(damage)
    assert len(captions(shards)) == 7
    run("data", "index", shards, "--no-nouns")
    own = next(shards.glob(".svilm-index-*"))
    content = own.read_bytes()
    for broken in (damage, content[: len(content) // 2]):
        own.write_bytes(broken)
        with pytest.raises(DataError, match=r"index"):
            captions(shards)


def test_an_interrupted_build_leaves_its_parts_alone(shards, cache, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(part.ShardReader, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index([str(shards)], {}, nouns=False)
    assert [path.suffix for path in shards.glob(".*")] == [".parts"]  # it continues there
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index([str(shards)], {}, nouns=False)
    assert [path.suffix for path in shards.glob(".*")] == [".parts"]
    index([str(shards)], {}, nouns=False)
    assert [path.suffix for path in shards.glob(".*")] == [".bin"]


def test_remote_shards(shards, cache, shards_read, monkeypatch, caplog):
    store_of_bytes = fsspec.filesystem("memory")
    store_of_bytes.put(str(shards), "/index-test", recursive=True)
    fetched: list[int] = []
    monkeypatch.setattr(
        files,
        "read_ranges",
        lambda path, ranges: fetched.append(len(ranges)) or together(path, ranges),
    )
    try:
        first = open_split(DataConfig(train="memory://index-test"), "train")
        assert fetched[-3:] == [3, 3, 1]
        assert "svilm data index" not in caplog.text  # it cannot write there
        shards_read.clear()
        again = open_split(DataConfig(train="memory://index-test"), "train")
        assert not shards_read
        for table in (first, again):
            assert list(table.captions()) == captions(shards)
            assert table.read_video(5) == b"video"
            assert (
                table.fingerprint == open_split(DataConfig(train=str(shards)), "train").fingerprint
            )
        store_of_bytes.rm("/index-test/part0-000001.tar")
        assert len(captions("memory://index-test")) == 4
    finally:
        store_of_bytes.rm("/index-test", recursive=True)


def _open(folder: str, results: multiprocessing.Queue, together: Barrier) -> None:
    def slowly(*arguments, **named):
        time.sleep(0.5)  # all are there before the first is ready
        return write_index(*arguments, **named)

    write_index, store.write_index = store.write_index, slowly
    stream = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(stream))
    together.wait()
    found = captions(folder)
    results.put((found, "indexed once" in stream.getvalue()))


def test_of_several_processes_one_makes_it(shards, cache):
    context = multiprocessing.get_context("fork")
    results, together = context.Queue(), context.Barrier(3)
    arguments = (str(shards), results, together)
    processes = [context.Process(target=_open, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(names == found[0][0] for names, _ in found)
    assert sum(made for _, made in found) == 1


def test_a_process_is_given_the_path_whatever_the_number_of_samples(shards, cache, tmp_path):
    many = write(tmp_path / "many", 300)
    sizes = []
    for folder in (shards, many):
        table = open_split(DataConfig(train=str(folder)), "train")
        sizes.append(len(pickle.dumps(table)))
    assert sizes[1] - sizes[0] < 100
    assert sizes[1] < 5000


def test_an_index_that_was_replaced_is_not_another_process_s(shards, cache):
    data = pickle.dumps(open_split(DataConfig(train=str(shards)), "train"))
    shutil.rmtree(shards)
    write(shards, 8)
    captions(shards)
    with pytest.raises(DataError, match="was replaced by another index"):
        pickle.loads(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, columns: header.pop("views"),
        lambda header, columns: header["views"]["fine"].update(samples=6),
        lambda header, columns: header.update(samples=8),
        lambda header, columns: header.update(sources=[{"places": 1}]),
        lambda header, columns: columns.pop("caption_start"),
        lambda header, columns: columns.update(shard=columns["shard"][:3]),
        lambda header, columns: columns.update(shard=columns["shard"].astype("S2")),
    ],
)
def test_an_index_whose_columns_do_not_belong_together(shards, change):
    run("data", "index", shards)
    own = next(shards.glob(".svilm-index-*"))
    header, columns, _ = read_columns(str(own))
    change(header, columns)
    write_columns(own, header, columns)
    with pytest.raises(DataError, match="damaged index"):
        captions(shards)


def test_a_cache_that_cannot_be_written_is_named(shards, cache, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(DataError, match=r"XDG_CACHE_HOME.*`svilm data index") as caught:
        captions(shards)
    assert str(cache) in str(caught.value)


def test_after_a_batch_no_page_of_the_index_stays_mapped(make_dataset, cache):
    dataset = make_dataset(12)
    path = dataset.table.stored.path
    assert path is not None

    def resident() -> list[str]:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        return [next(r for r in lines if r.startswith("Rss:")) for at in lines if at.endswith(path)]

    dataset.keys.sum()
    assert any(int(each.split()[1]) for each in resident())
    dataset.batch([1, 2])
    assert resident()
    assert not any(int(each.split()[1]) for each in resident())
