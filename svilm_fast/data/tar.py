"""A small reader of tar headers: it lists members, follows no links and writes nothing to disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from svilm_fast.data.errors import ShardError

BLOCK = 512
_REGULAR = (b"0", b"\0")
_LONG_NAME = b"L"
_PAX, _PAX_GLOBAL = b"x", b"g"
_DIRECTORY = b"5"
_HEADER_TEXT_LIMIT = 1 << 16
_OCTAL = re.compile(rb"[0-7]*")
_DRIVE = re.compile("[A-Za-z]:")
_SIZE = re.compile(r"[0-9]{1,19}")  # bytes up to 2^63


@dataclass(frozen=True)
class TarMember:
    """A regular file inside a tar archive."""

    name: str
    offset: int
    size: int


def _number(field: bytes, what: str, where: str) -> int:
    if field[:1] == b"\x80":  # base-256, for sizes from 8 GiB
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip()
    if not _OCTAL.fullmatch(text):
        raise ShardError(
            f"{where}: the {what} field {text!r} of a tar header is not an octal number"
        )
    return int(text, 8) if text else 0


def _text(field: bytes) -> str:
    # Names in other encodings stay apart from one another: byte 0xe9 becomes the four characters
    # \\xe9.
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _pax_records(data: bytes, where: str) -> dict[str, str]:
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank]
        if blank < 0 or not digits.isdigit() or not 0 < int(digits) <= len(data) - position:
            raise ShardError(f"{where}: a damaged extended tar header")
        name, _, value = data[blank + 1 : position + int(digits) - 1].partition(b"=")
        records[_text(name)] = value.decode("utf-8", "backslashreplace")
        position += int(digits)
    return records


def _check_name(name: str, where: str) -> None:
    parts = name.replace("\\", "/").split("/")
    absolute = name.startswith(("/", "\\")) or _DRIVE.match(name)
    if not name or absolute or ".." in parts or "\0" in name:
        raise ShardError(f"{where}: the member name {name!r} leaves the archive: refused")


def read_members(
    stream: BinaryIO, total_bytes: int, label: str, *, max_members: int
) -> Iterator[TarMember]:
    """Yield the regular members of the archive in `stream`, `total_bytes` long.

    Raises ShardError for a damaged header, a size that reaches beyond the file, an archive
    without its end marker, a link or device, a name that leaves the archive, the same name twice.
    """
    position, names = 0, set()
    long_name: str | None = None
    long_size: int | None = None
    while True:
        where = f"{label}, byte {position}"
        stream.seek(position)
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise ShardError(f"{label}: truncated: the end marker of a tar archive is missing")
        if not header.strip(b"\0"):
            while rest := stream.read(1 << 20):
                if rest.strip(b"\0"):
                    raise ShardError(f"{where}: an empty header with more data behind it")
            return
        stored = _number(header[148:156], "checksum", where)
        if stored != sum(header[:148]) + sum(header[156:]) + 8 * 32:
            raise ShardError(f"{where}: damaged tar header (its checksum does not match)")
        kind = header[156:157]
        extended = kind in (_LONG_NAME, _PAX, _PAX_GLOBAL)
        size = _number(header[124:136], "size", where)
        if long_size is not None and not extended:
            size = long_size
        start = position + BLOCK
        if size > total_bytes - start:
            raise ShardError(
                f"{where}: a member claims {size} bytes and the file holds {total_bytes - start}"
            )
        position = start + -(-size // BLOCK) * BLOCK
        if extended:
            if size > _HEADER_TEXT_LIMIT:
                raise ShardError(f"{where}: an extended tar header of {size} bytes")
            data = stream.read(size)
            if kind == _LONG_NAME:
                long_name = _text(data)
            elif kind == _PAX:
                records = _pax_records(data, where)
                long_name = records.get("path", long_name)
                if "size" in records:
                    if not _SIZE.fullmatch(records["size"]):
                        raise ShardError(
                            f"{where}: the size {records['size']!r:.60} is not a number"
                        )
                    long_size = int(records["size"])
                if any(name.startswith("GNU.sparse.") for name in records):
                    raise ShardError(f"{where}: a sparse file: write the archive without --sparse")
            continue
        name, long_name, long_size = long_name or _header_name(header), None, None
        if kind == _DIRECTORY:
            continue
        if kind not in _REGULAR:
            raise ShardError(f"{where}: {name!r} is a link or device; only files are allowed")
        _check_name(name, where)
        if name in names:
            raise ShardError(f"{where}: the member {name!r} appears twice")
        names.add(name)
        if len(names) > max_members:
            raise ShardError(f"{label}: more than {max_members} members (limits.shard_members)")
        yield TarMember(name, start, size)


def _header_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    is_ustar = header[257:263] == b"ustar\0"
    return f"{prefix}/{name}" if is_ustar and prefix else name
