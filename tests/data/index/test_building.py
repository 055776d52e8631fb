"""Building an index: equal bytes for every number of workers, and after any number of kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index import build, part, store
from svilm_fast.data.index.build import BuildEngine
from svilm_fast.data.index.commands import index
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardWriter
from tests.kills import KILLS

ARGUMENTS = ["-m", "svilm_fast.cli", "data", "index"]


def write(folder: Path, samples: int, per_shard: int) -> Path:
    with ShardWriter(folder, max_samples=per_shard) as writer:
        for number in range(samples):
            record = {"caption": f"dog {number} and a cat"} if number % 5 else {"caption": 7}
            writer.write(f"s{number}", {"mp4": b"video", "json": json.dumps(record).encode()})
    return folder


def built(folder: Path, *, nouns: bool = True, **settings) -> bytes:
    """The bytes of the index, which is removed; nothing else of the build is left."""
    index([str(folder)], {}, nouns=nouns, **settings)
    (path,) = folder.glob(".svilm-*")
    content = path.read_bytes()
    path.unlink()
    return content


def test_workers_change_no_byte(tmp_path):
    folder = write(tmp_path, 40, 4)
    one, three = (built(folder, nouns=False, engine=BuildEngine(workers=n)) for n in (1, 3))
    assert one == three


def _killed(call: list[str], after_s: float) -> None:
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path):
    folder = write(tmp_path, 1200, 10)
    call = [sys.executable, *ARGUMENTS, str(folder), "--workers", "2"]
    start = time.monotonic()
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - start
    (path,) = folder.glob(".svilm-index-*")
    expected = path.read_bytes()
    path.unlink()
    moments = random.Random(5)
    for _ in range(KILLS):
        _killed(call, moments.uniform(0.2, 1) * whole)
        path.unlink(missing_ok=True)
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    assert [found.name for found in folder.glob(".svilm-*")] == [path.name]
    assert path.read_bytes() == expected


def test_stopped_after_every_shard_no_shard_is_read_twice(tmp_path, monkeypatch):
    folder = write(tmp_path, 12, 2)
    expected = built(folder)
    read: list[str] = []
    original = build.build_part

    def stops(shard, parameters):
        if len(read) % 2:
            read.append("")
            raise KeyboardInterrupt
        read.append(shard)
        return original(shard, parameters)

    monkeypatch.setattr(build, "build_part", stops)
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            built(folder, engine=BuildEngine(workers=1))
        if len(list(folder.glob(".*.parts/*.part"))) == 5:
            break
    assert built(folder, engine=BuildEngine(workers=1)) == expected
    shards = [name for name in read if name]
    assert len(shards) == len(set(shards)) == 6


def test_parts_of_shards_that_changed_are_not_used(tmp_path, monkeypatch):
    folder = write(tmp_path / "shards", 12, 2)

    def fails(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_columns", fails)
        with pytest.raises(KeyboardInterrupt):
            built(folder)
    (parts,) = folder.glob(".*.parts")
    (parts / "mine").write_text("mine")
    for path in folder.glob("*.tar*"):
        path.unlink()
    write(folder, 9, 3)
    index([str(folder)], {}, nouns=True)
    assert list(open_split(DataConfig(train=str(folder)), "train").ids) == [
        f"s{number}" for number in (1, 2, 3, 4, 6, 7, 8)
    ]
    assert (parts / "mine").read_text() == "mine"
    assert [path.name for path in parts.iterdir()] == ["mine"]


def test_shards_that_change_meanwhile_are_an_error(tmp_path, monkeypatch):
    folder = write(tmp_path, 6, 2)
    original = build.build_part

    def changes(shard, parameters):
        found = original(shard, parameters)
        (folder / "shard-000000.tar.index.json").unlink(missing_ok=True)
        os.utime(folder / "shard-000000.tar")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_part", changes)
        with pytest.raises(DataError, match="changed while it was indexed: start again"):
            built(folder)
    assert not list(folder.glob("*.bin"))
    index([str(folder)], {}, nouns=True)


def test_a_large_set_is_read_once(tmp_path, monkeypatch):
    folder = write(tmp_path / "shards", 12, 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 4)
    read: list[str] = []
    original = part.load_index
    monkeypatch.setattr(
        part, "load_index", lambda path, most: read.append(path) or original(path, most)
    )
    table = open_split(DataConfig(train=str(folder)), "train", nouns=True)
    assert table.stored.path is not None
    assert len(read) == len(set(read)) == 6
    assert Path(table.stored.path).read_bytes() == built(folder)


def test_two_builds_of_one_index_at_a_time(tmp_path):
    folder = write(tmp_path, 4, 2)
    index([str(folder)], {}, nouns=True)
    (path,) = folder.glob(".svilm-index-*")
    busy = pytest.raises(DataError, match="another process makes this index")
    with build._folder_of_parts(path, "inputs"), busy:
        index([str(folder)], {}, nouns=True)
    index([str(folder)], {}, nouns=True)


@pytest.mark.parametrize("pieces", [1, 3, 7, 20_000])
def test_a_list_in_pieces(tmp_path, monkeypatch, pieces):
    (tmp_path / "v.mp4").write_bytes(b"v")
    (tmp_path / "w.mp4").write_bytes(b"w")
    rows = [{"video": "vw"[n // 6], "caption": f"dog {n}"} for n in range(7)]
    rows += [{"video": "nowhere", "caption": "a cat"}]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(part, "LIST_ROWS", pieces)
    table = open_split(DataConfig(train=str(path)), "train")
    assert list(table.ids) == [*(f"v#{n}" for n in range(6)), "w"]
    assert list(table.captions()) == [f"dog {n}" for n in range(7)]
    assert [skip.sample for skip in table.rejected] == ["nowhere"]


def test_a_large_list_is_not_built_in_memory_first(tmp_path, monkeypatch):
    (tmp_path / "v.mp4").write_bytes(b"v")
    path = tmp_path / "list.csv"
    path.write_text("video,caption\n" + "".join(f"v,dog {n}\n" for n in range(9)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 8)
    rows: list[object] = []
    original = part._Part.accept
    monkeypatch.setattr(
        part._Part, "accept", lambda *a, **k: rows.append(a[1]) or original(*a, **k)
    )
    table = open_split(DataConfig(train=str(path)), "train")
    assert table.stored.path is not None
    assert rows == [f"v#{n}" for n in range(9)]
