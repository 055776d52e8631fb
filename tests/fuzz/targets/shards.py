"""Shards: tar headers and index files of any content."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tarfile
import tempfile
import zlib
from pathlib import Path

from hypothesis import strategies as st

from svilm_fast.data.errors import DataError
from svilm_fast.data.shards import INDEX_SUFFIX, ShardReader, ShardWriter, load_index
from svilm_fast.data.tar import BLOCK, read_members

from ..engine import Target
from ..texts import TEXTS, damaged, damaged_json

_NAMES = st.one_of(
    st.sampled_from(
        ["a.mp4", "b/c.json", "../x", "/abs", "C:\\x", "a" * 120 + ".mp4", "é.mp4", "."]
    ),
    TEXTS.filter(lambda text: text and "\0" not in text),
)
_PAX = st.dictionaries(
    st.sampled_from(["path", "size", "GNU.sparse.map", "mtime", "linkpath"]),
    st.one_of(
        st.sampled_from(["²", "٣", "-1", "9" * 5000, "0", "3", "1e3", "../../x", "a\0b", ""]), TEXTS
    ),
    max_size=2,
)


@st.composite
def _archive(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A tar file, and whether nothing was damaged and only regular members are inside."""
    out = io.BytesIO()
    kinds = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    plain = True
    with tarfile.open(
        fileobj=out, mode="w", format=draw(st.sampled_from(kinds)), errors="surrogatepass"
    ) as tar:
        for _ in range(draw(st.integers(0, 3))):
            info = tarfile.TarInfo(draw(_NAMES))
            data = draw(st.binary(max_size=40))
            info.size = len(data)
            kind = draw(st.integers(0, 9))
            if kind == 0:
                types = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
                types += [tarfile.CHRTYPE, b"V", b"S", b"x", b"g", b"L", b"K", b"7"]
                info.type = draw(st.sampled_from(types))
                plain = False
            elif kind == 1:
                info.pax_headers = draw(_PAX)
                plain = False
            # Names that the format cannot store.
            with contextlib.suppress(ValueError, UnicodeError):
                tar.addfile(info, io.BytesIO(data))
    raw = bytearray(out.getvalue())
    headers = range(0, len(raw) - BLOCK, BLOCK)
    if draw(st.integers(0, 2)) == 0 and len(headers):
        # Change a header field and correct the checksum.
        plain = False
        at = draw(st.sampled_from(headers))
        where, length = draw(st.sampled_from([(0, 100), (124, 12), (156, 1), (257, 8), (345, 155)]))
        field = draw(
            st.one_of(
                st.binary(max_size=length),
                st.sampled_from([
                    b"-1", b"+7", b"0o7", b"1_0", b" 7 ", b"77777777777", b"\x80" + b"\xff" * 11,
                    b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\1", b"8", b"",
                ]),
            )
        )[:length]  # fmt: skip
        raw[at + where : at + where + length] = field.ljust(length, b"\0")
        raw[at + 148 : at + 156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + BLOCK])
    data = bytes(raw)
    if draw(st.booleans()):
        changed = draw(damaged(data))
        plain &= changed == data
        data = changed
    return data, plain


def check_tar(case: tuple[bytes, bool], folder: Path) -> None:
    data, plain = case
    members = list(read_members(io.BytesIO(data), len(data), "x.tar", max_members=50))
    names = [member.name for member in members]
    assert len(set(names)) == len(names), "a name twice"
    for member in members:
        parts = member.name.replace("\\", "/").split("/")
        assert ".." not in parts, "a name that leaves the archive"
        assert parts[0], "an absolute name"
        assert member.size >= 0, "a negative size"
        assert member.offset + member.size <= len(data), "a member beyond the end"
    if plain:
        with tarfile.open(fileobj=io.BytesIO(data), errors="backslashreplace") as tar:
            expected = [(info.offset_data, info.size) for info in tar if info.isreg()]
        assert [(m.offset, m.size) for m in members] == expected, "members differ from tarfile's"


@functools.cache
def _shard() -> tuple[bytes, dict]:
    """A valid shard and its index."""
    with tempfile.TemporaryDirectory() as name:
        with ShardWriter(name) as writer:
            for number in range(3):
                members = {"mp4": bytes(range(40 * number, 40 * number + 40)), "json": b'{"a": 1}'}
                writer.write(f"s{number}", members)
        (path,) = writer.paths
        index = Path(f"{path}{INDEX_SUFFIX}").read_text()
        return path.read_bytes(), json.loads(index)


@st.composite
def _indices(draw: st.DrawFn) -> bytes:
    return draw(damaged_json(_shard()[1]))


def check_index(case: bytes, folder: Path) -> None:
    data, _ = _shard()
    path = folder / "x.tar"
    path.write_bytes(data)
    Path(f"{path}{INDEX_SUFFIX}").write_bytes(case)
    reader = ShardReader()
    try:
        for key, members in load_index(str(path)).samples.items():
            assert isinstance(key, str)
            for entry in members.values():
                assert type(entry.offset) is int
                assert type(entry.size) is int
                assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)
                with contextlib.suppress(DataError):
                    found = reader.read(str(path), entry, "x", 1 << 20)
                    assert found == data[entry.offset : entry.offset + entry.size]
                    assert entry.crc32 is None or zlib.crc32(found) == entry.crc32
    finally:
        reader.close()


TAR = Target("tar", _archive(), check_tar, short=80)
INDEX = Target("index", _indices(), check_index, short=60, prepare=_shard)
