"""Paths that the user names: regular files and allowed protocols; all else is refused by name."""

from __future__ import annotations

import os
import socket
import sys

import fsspec
import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.data import files
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, MissingFileError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import load_index
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.train.config.load import load_config

REFUSED = r"not allowed|without file://"
# A reader that opens the FIFO would wait for ever.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def fifo(tmp_path):
    def make(name: str) -> str:
        os.mkfifo(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("name", ["shard.tar", "list.csv", "list.tsv", "list.jsonl"])
def test_a_fifo_as_shard_or_list_is_refused(fifo, name):
    with pytest.raises(DataError, match=rf"{name}' is a FIFO: give a regular file"):
        open_split(DataConfig(train=fifo(name)), "train")


def test_a_fifo_in_a_folder_of_shards_or_videos_is_refused(fifo, tmp_path, make_shards):
    shard = sorted(make_shards(2).glob("*.tar"))[0]
    fifo("a.mp4")
    fifo("index.tar")
    with pytest.raises(DataError, match=r"index\.tar' is a FIFO"):
        open_split(DataConfig(train=str(tmp_path / "index.tar")), "train")
    index = shard.with_name(shard.name + ".index.json")
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(DataError, match="is a FIFO"):
        load_index(str(shard))
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "caption": "a dog"}')
    with pytest.raises(DataError, match=r"no sample could be packed; a\.mp4"):
        pack(str(tmp_path / "list.jsonl"), tmp_path / "out")


def test_devices_and_sockets_are_refused(tmp_path, monkeypatch):
    for device in ("/dev/zero", "/dev/stdin", "/dev/tty"):
        if os.path.exists(device) and not os.path.isfile(device):
            with pytest.raises(DataError, match=r"is a (device|FIFO|socket)"):
                files.read_bytes(device, 10)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.tar")
        with pytest.raises(DataError, match="is a socket"):
            files.size_of("s.tar")


def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_refused(fifo, monkeypatch):
    path, real = fifo("late.csv"), os.stat
    monkeypatch.setattr(os, "stat", lambda name, **options: real(__file__, **options))
    with pytest.raises(DataError, match="is a FIFO"):
        files.read_bytes(path, 10)


def test_configuration_and_tokenizer_are_regular_files(fifo):
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(fifo("run.yaml"), [])
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.load(fifo("tokenizer.json"))
    with pytest.raises(DataError, match=r"clip\.gz"):
        Tokenizer.clip(fifo("clip.gz"))


def test_links_to_files_and_paths_that_are_none(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert files.read_bytes(str(tmp_path / "link"), 3) == b"abc"
    for path in (str(tmp_path), str(tmp_path / "no"), str(tmp_path / "a" / "b"), "\ud800", "a\0b"):
        with pytest.raises(MissingFileError):
            files.read_bytes(path, 3)


@pytest.mark.parametrize(
    "path",
    [
        "pipe:cat /etc/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "github://a:b@/c.tar",
        "git://x:/c.tar",
        "libarchive://x.tar::/tmp/a.zip",
        "zip://x.tar::https://example.org/a.zip",
        "simplecache::s3://bucket/a.tar",
        "https://example.org/a.tar::file:///etc/passwd",
        "memory://a.tar::memory://b.tar",
        "ssh://host/a.tar",
        "sftp://host/a.tar",
        "ftp://host/a.tar",
        "hdfs://host/a.tar",
        "jupyter://host/a.tar",
        "dask://host/a.tar",
        "data:text/plain,a",
        "reference://a.tar",
        "s3:bucket/a.tar",
    ],
)
def test_refused_protocols(path, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", _must_not_be_called)
    for call in (files.open_binary, files.exists, files.size_of, files.tree):
        with pytest.raises(DataError, match=REFUSED):
            call(path)
    with pytest.raises(DataError, match=REFUSED):
        files.find(path, ".tar")
    with pytest.raises(DataError, match=REFUSED):
        open_split(DataConfig(train=path), "train")


def _must_not_be_called(*arguments):
    raise AssertionError(arguments)


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [("http://h/a.tar", "aiohttp", "aiohttp"), ("s3://b/a.tar", "s3fs", "s3fs")],
)
def test_a_missing_package_of_fsspec_is_named(url, module, package, monkeypatch):
    implementation = f"fsspec.implementations.{url[:4]}" if url.startswith("http") else module
    monkeypatch.delitem(sys.modules, implementation, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    # The package has an attribute of the module's name.
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    for call in (files.open_binary, files.exists, files.size_of, files.tree):
        with pytest.raises(DataError, match=f"needs another package: pip install {package}"):
            call(url)
    with pytest.raises(DataError, match=rf"data\.train: .*pip install {package}"):
        open_split(DataConfig(train=url), "train")


def test_what_a_store_raises_is_a_data_error(monkeypatch):
    class NoCredentials(Exception):
        pass

    class Broken(fsspec.AbstractFileSystem):
        def __getattribute__(self, name):
            if name in ("open", "exists", "find", "isdir"):
                raise NoCredentials("unable to locate credentials")
            return super().__getattribute__(name)

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Broken(), url))
    for call in (files.open_binary, files.exists, files.size_of, files.tree):
        with pytest.raises(DataError, match=r"'s3://b/a' cannot be read: NoCredentials: unable"):
            call("s3://b/a")


def test_errors_while_a_remote_file_is_read_are_data_errors(monkeypatch):
    path = "memory://reading/a.bin"
    fsspec.filesystem("memory").pipe("/reading/a.bin", b"abc")
    assert files.read_bytes(path, 3) == b"abc"

    class Lost(Exception):
        pass

    class Stream:
        def __enter__(self):
            return self

        def __exit__(self, *rest):
            return None

        def read(self, size):
            raise Lost("connection reset")

    monkeypatch.setattr(files, "open_binary", lambda path: Stream())
    with pytest.raises(DataError, match="Lost: connection reset"):
        files.read_bytes(path, 3)
