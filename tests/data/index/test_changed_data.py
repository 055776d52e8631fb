"""An index of data that is no longer there: shards of equal size, copies, remote shards, links."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import fsspec
import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index import build, sources, store
from svilm_fast.data.index.commands import index
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardWriter


def write(folder: Path, word: str = "dog") -> Path:
    with ShardWriter(folder, max_samples=3) as writer:
        for number in range(7):
            writer.write(f"s{number}", {"mp4": b"video", "txt": f"a {word}".encode()})
    return folder


def captions(folder: Path | str) -> set[str]:
    return set(open_split(DataConfig(train=str(folder)), "train").captions())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 6)
    return tmp_path / "cache"


def _past(path: Path) -> None:
    """Make an index older than its shards, whatever the clock of the file system."""
    os.utime(path, (time.time() - 100,) * 2)


def test_a_shard_replaced_by_one_of_equal_size(tmp_path):
    folder = write(tmp_path / "shards")
    index([str(folder)], {}, nouns=False)
    _past(next(folder.glob(".svilm-index-*")))
    other = write(tmp_path / "other", "cat") / "shard-000001.tar"
    shard = folder / other.name
    assert shard.stat().st_size == other.stat().st_size
    shutil.copy2(other, shard)
    with pytest.raises(DataError, match=r"shard-000001\.tar has other content.*make it again with"):
        captions(folder)
    shutil.copy2(other.with_name(f"{other.name}.index.json"), folder)
    index([str(folder)], {}, nouns=False)
    assert captions(folder) == {"a dog", "a cat"}


@pytest.mark.parametrize("most", [1000, 2])
def test_a_copied_folder_still_opens(tmp_path, monkeypatch, most):
    monkeypatch.setattr(sources, "_COMPARED", most)
    folder = write(tmp_path / "shards")
    index([str(folder)], {}, nouns=False)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    _past(next((tmp_path / "copy").glob(".svilm-index-*")))
    monkeypatch.setattr(store, "index_in_memory", None)  # the index is used
    assert captions(tmp_path / "copy") == {"a dog"}


def test_remote_shards_of_other_content(tmp_path, cache):
    remote = fsspec.filesystem("memory")
    try:
        for word in ("dog", "cat", "longer"):  # the first two of equal size
            for path in write(tmp_path / word, word).iterdir():
                remote.pipe(f"/changed/{path.name}", path.read_bytes())
            assert captions("memory://changed") == {f"a {word}"}
            assert captions("memory://changed/shard-00000{0..2}.tar") == {f"a {word}"}
    finally:
        remote.rm("/changed", recursive=True)


def test_a_linked_folder_has_the_index_of_the_folder(tmp_path, monkeypatch):
    folder = write(tmp_path / "shards")
    (tmp_path / "link").symlink_to(folder)
    index([str(tmp_path / "link")], {}, nouns=False)
    monkeypatch.setattr(store, "index_in_memory", None)
    assert captions(folder) == captions(tmp_path / "link") == {"a dog"}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(tmp_path, cache, monkeypatch, code):
    folder = write(tmp_path / "shards")
    original = Path.mkdir

    def mkdir(path, *arguments, **named):
        if path.is_relative_to(folder):
            raise OSError(code, os.strerror(code))
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(DataError, match=rf"cannot be written.*{os.strerror(code)}.*writable"):
        index([str(folder)], {}, nouns=False)
    assert captions(folder) == {"a dog"}  # through the cache


@pytest.mark.parametrize("step", ["save_columns", "write_columns"])
def test_a_full_disk(tmp_path, cache, monkeypatch, step):
    folder = write(tmp_path / "shards")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(build, step, full)
        with pytest.raises(DataError, match=r"No space left on device.*again to continue"):
            index([str(folder)], {}, nouns=False)
        with pytest.raises(DataError, match=r"No space left on device.*XDG_CACHE_HOME"):
            captions(folder)
    assert not list(tmp_path.rglob("*.bin"))
    index([str(folder)], {}, nouns=False)
    assert captions(folder) == {"a dog"}
