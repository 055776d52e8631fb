"""CSV, JSONL and Parquet lists of videos and captions, MSR-VTT 1k-A style files included."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from svilm_fast.core.collection import collection_paused
from svilm_fast.data import files
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import ListFormatError, MissingFileError, SampleJsonError
from svilm_fast.data.json_blocks import decode_lines
from svilm_fast.data.parquet import parquet_blocks
from svilm_fast.data.segments import END_COLUMNS, START_COLUMNS, unread_column
from svilm_fast.data.shards import finite, parse_json
from svilm_fast.data.tables import column_name, read_table
from svilm_fast.data.text import decode_utf8

VIDEO_COLUMNS = (
    "video",
    "video_id",
    "videoid",
    "path",
    "file",
    "file_name",
    "key",
    "id",
    "youtubeid",
    "youtube_id",
)
CAPTION_COLUMNS = ("caption", "sentence", "text", "captions", "description", "name")
PARQUET = ".parquet"
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", PARQUET)
FOLDER_COLUMN = "page_dir"
_LINE_BYTES = 1 << 28
_PIECE_BYTES = 1 << 20
# As `parse_json`, but does not see a key that occurs twice in an object.
_PLAIN_JSON = json.JSONDecoder(parse_constant=finite, parse_float=finite)
_LINE_END = re.compile("\r\n|\r")

_Records = list[tuple[int, dict[str, Any]]]  # numbers of lines, and their columns


class ListRow(NamedTuple):  # takes a third of a frozen dataclass's time
    """A line of a list: the video as named there, its caption, and every other column."""

    video: str
    caption: str | None
    line: int
    extra: dict[str, Any]

    @property
    def folder(self) -> str | None:
        """The folder of the video, where the list has a column `page_dir`, as WebVid does."""
        place = self.extra.get(FOLDER_COLUMN)
        return str(place).strip("/ ") or None if isinstance(place, str | int) else None


def is_list(path: str) -> bool:
    return path.lower().endswith(LIST_SUFFIXES)


def read_list(path: str) -> list[ListRow]:
    """The rows of a list, in order. Raises as `ListFile` does."""
    with collection_paused():
        return list(ListFile(path, keep=True).rows())


class ListFile:
    """A CSV, TSV (with a header line), JSONL or Parquet file, read row by row.

    The video column is the first of VIDEO_COLUMNS that exists, the caption column the first of
    CAPTION_COLUMNS; a 1k-A file (`key,vid_key,video_id,sentence`) gives `video_id` and `sentence`.
    Names of columns and keys are read in lower case and with `_` for white space.

    keep: the columns of a JSONL file are known when all of it has been read; keep its records for
    `rows`, instead of reading it again. Raises MissingFileError, or ListFormatError naming the line
    or the column.
    """

    def __init__(self, path: str, *, keep: bool = False) -> None:
        self.path = path
        self._header: list[str] | None = None
        self._kept: list[_Records] | None = None
        kept: list[_Records] = []
        names: dict[str, None] = {}
        if path.lower().endswith(".jsonl"):
            for block in _json_blocks(path):
                for keys in dict.fromkeys(tuple(record) for _, record in block):
                    names.update(dict.fromkeys(keys))
                if keep:
                    kept.append(block)
            self._kept = kept if keep else None
        elif path.lower().endswith(PARQUET):
            first = itertools.islice(_blocks(path), 1)
            names = {name: None for block in first for name in block[0][1]}
        else:
            self._header, rows = _table(path)
            names = dict.fromkeys(self._header if next(rows, None) else ())
        if not names:
            raise ListFormatError(f"{path}: no rows")
        columns = list(names)
        video = _first(VIDEO_COLUMNS, columns)
        if video is None:
            raise ListFormatError(
                f"{path}: no video column among {', '.join(columns)}; name it one of "
                f"{', '.join(VIDEO_COLUMNS)}"
            )
        unread = unread_column(columns)
        if unread is not None:
            raise ListFormatError(
                f"{path}: the column {unread!r} seems to name a part of the video and is not "
                "understood: give seconds or h:mm:ss in "
                f"{START_COLUMNS[0]!r} and {END_COLUMNS[0]!r}, "
                "or rename the column if it means something else"
            )
        self._video = video
        self._caption = _first(CAPTION_COLUMNS, [c for c in columns if c != video])

    def rows(self) -> Iterator[ListRow]:
        """The rows in order; each call reads the file again, unless its records were kept."""
        if self._header is not None:
            return self._table_rows(self._header)
        blocks = _blocks(self.path) if self._kept is None else self._kept
        records = itertools.chain.from_iterable(blocks)
        return (_row(self.path, n, record, self._video, self._caption) for n, record in records)

    def _table_rows(self, header: list[str]) -> Iterator[ListRow]:
        chosen = (self._video, self._caption)
        video = header.index(self._video)
        caption = None if self._caption is None else header.index(self._caption)
        others = [(name, place) for place, name in enumerate(header) if name not in chosen]
        for line, cells in _table(self.path)[1]:
            name = cells[video].strip()
            if not name:
                raise ListFormatError(
                    f"{self.path}, line {line}: the column {chosen[0]!r} is empty"
                )
            text = None if caption is None else cells[caption].strip()
            extra = {name: cells[place] for name, place in others} if others else {}
            yield ListRow(name, text, line, extra)


def read_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row, from 1, and cells by column name) of a list, read piece by piece.

    Names of columns are in lower case and with `_` for white space. Raises ListFormatError.
    """
    if path.lower().endswith((".jsonl", PARQUET)):
        return itertools.chain.from_iterable(_blocks(path))
    header, rows = _table(path)
    return ((line, dict(zip(header, cells, strict=True))) for line, cells in rows)


def _blocks(path: str) -> Iterator[_Records]:
    if not path.lower().endswith(PARQUET):
        yield from _json_blocks(path)
        return
    for block in parquet_blocks(path):
        yield [(row, _named(path, row, given, set())) for row, given in block]


def _line_blocks(path: str) -> Iterator[list[str]]:
    """The lines of a UTF-8 file without their `\\n`, many at a time."""
    number, start, rest = 1, 0, b""
    with files.opened(path) as stream:
        for piece in itertools.chain(iter(lambda: stream.read(_PIECE_BYTES), b""), [b"\n"]):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                text = decode_utf8(whole, path, ListFormatError, line=number, start=start)
                lines = text.split("\n")
                yield lines
                number, start = number + len(lines), start + len(whole) + 1
            if len(rest) > _LINE_BYTES:
                raise ListFormatError(
                    f"{path}, line {number}: longer than the {_LINE_BYTES} bytes allowed"
                )


def _first(wanted: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in wanted if name in columns), None)


def _row(path: str, line: int, record: dict[str, Any], video: str, caption: str | None) -> ListRow:
    name, text = record.get(video), record.get(caption) if caption else None
    if type(name) is str and (name := name.strip()):
        if type(text) is str and len(record) == 2:
            return ListRow(name, text.strip(), line, {})
    elif isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ListFormatError(
            f"{path}, line {line}: the column {video!r} is {name!r:.60}: give the video's name as "
            "text or a whole number"
        )
    elif name is None or name == "":
        raise ListFormatError(f"{path}, line {line}: the column {video!r} is empty")
    extra = {key: value for key, value in record.items() if key != video and key != caption}
    if text is not None and not isinstance(text, str):
        extra[str(caption)], text = text, None
    return ListRow(str(name), text if text is None else text.strip(), line, extra)


def _json_blocks(path: str) -> Iterator[_Records]:
    """(line number, columns) of every line that is not blank, in blocks."""
    columns: set[str] = set()  # keys that are spelled as their columns are
    number = 1
    for lines in _line_blocks(path):
        found = decode_lines(lines, _PLAIN_JSON)
        if found is None:
            block = list(_json_lines(path, lines, number))
        else:
            block = list(zip(itertools.count(number), found))
        if not all(columns.issuperset(keys) for keys in {tuple(record) for _, record in block}):
            block = [(line, _named(path, line, record, columns)) for line, record in block]
        yield block
        number += len(lines)


def _json_lines(path: str, lines: list[str], first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines one by one: some are blank, or one is wrong, which the error names."""
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                yield number, parse_json(line.encode(), f"{path}, line {number}")
            except SampleJsonError as error:
                raise ListFormatError(str(error)) from None


def _named(path: str, line: int, given: dict[str, Any], columns: set[str]) -> dict[str, Any]:
    """A record by the names of its columns; keys that are spelled as these are noted."""
    record = {column_name(key): value for key, value in given.items()}
    if len(record) < len(given):
        raise ListFormatError(f"{path}, line {line}: two keys differ only in case or white space")
    columns |= record.keys() & given.keys()
    return record


def _table(path: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    blocks = (
        lines if all("\r" not in line for line in lines) else _cut_further(lines)
        for lines in _line_blocks(path)
    )
    return read_table(path, blocks, delimiter, VIDEO_COLUMNS)


def _cut_further(lines: list[str]) -> list[str]:
    """Lines that were cut at `\\n`, cut at `\\r` too."""
    return [part for line in lines for part in _LINE_END.split(line.removesuffix("\r"))]


class VideoFolder:
    """Finds the videos that a list names, with or without their extension, below one folder."""

    def __init__(self, folder: str) -> None:
        if files.protocol(folder) is None and not os.path.isdir(folder):
            raise MissingFileError(
                f"the video folder {folder!r} does not exist: set data.videos to the right one"
            )
        self.folder = folder.rstrip("/")
        self._known: dict[str, list[str]] | None = None
        local = files.protocol(folder) is None
        places = [os.path.abspath(folder), os.path.realpath(folder)] if local else [self.folder]
        self._prefixes = [f"{place.rstrip('/')}/" for place in dict.fromkeys(places)]
        self._files: dict[tuple[int, ...], str] = {}

    def locate(self, name: str, folder: str | None = None) -> str:
        """The path of a video: `name` as it is, with an extension added, or in a folder below.

        It is looked for in `folder` below this one first. Names of one file, links among them,
        give one path: the one that was found first. Raises MissingFileError, also for a name
        outside the folder or of several videos.
        """
        if folder is not None and "/" not in name:
            with contextlib.suppress(MissingFileError):
                return self.locate(f"{folder}/{name}")
        inside = self._inside(name)
        path = f"{self.folder}/{inside}"
        if files.protocol(path) is None:
            if os.path.isfile(path):
                return self._first_name(path)
        elif has_video_extension(inside) and files.exists(path):
            return path
        found = self._by_name().get(inside, [])
        if not found:
            hint = "; put / between folders" if "\\" in name else ""
            raise MissingFileError(f"no video {name!r} in {self.folder!r} or below it{hint}")
        if len(found) > 1:
            raise MissingFileError(
                f"several videos are called {name!r} ({', '.join(found[:3])}): name the folder too"
            )
        path = f"{self.folder}/{found[0]}"
        if files.protocol(path) is not None:
            return path
        if not os.path.isfile(path):
            raise MissingFileError(f"{path!r} is not a regular file")
        return self._first_name(path)

    def _inside(self, name: str) -> str:
        """A name as a path relative to the folder."""
        for prefix in self._prefixes if name.startswith("/") or "://" in name else ():
            name = name.removeprefix(prefix)
        inside = posixpath.normpath(name)
        if "://" in name:
            hint = "download it, or give its folder as"
        elif inside.startswith("/"):
            hint = f"give {posixpath.dirname(inside)!r}, or a folder above all listed videos, as"
        elif inside.split("/")[0] == "..":
            hint = "give a folder above all videos of the list, and names relative to it, as"
        else:
            return inside
        raise MissingFileError(
            f"{name!r} is not inside the video folder {self.folder!r}: {hint} data.videos "
            "(svilm data pack --videos)"
        )

    def _first_name(self, path: str) -> str:
        try:
            found = os.stat(path)
        except OSError:
            return path
        # Some file systems number no files, or all alike: size and time must agree too.
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        return self._files.setdefault(identity, path) if found.st_ino else path

    def _by_name(self) -> dict[str, list[str]]:
        """Videos by path and by name, each with and without its extension.

        A path comes before the same name further down; of one path with several extensions, the
        first of VIDEO_EXTENSIONS counts.
        """
        if self._known is None:
            rank = {extension: number for number, extension in enumerate(VIDEO_EXTENSIONS)}
            by_path: dict[str, str] = {}
            by_name: dict[str, list[str]] = {}
            videos = [path for path in files.tree(self.folder) if has_video_extension(path)]
            for path in sorted(videos, key=lambda path: rank[extension_of(path)]):
                by_name.setdefault(path.rpartition("/")[2], []).append(path)
                if by_path.setdefault(path.rpartition(".")[0], path) == path:
                    stem = path.rpartition("/")[2].rpartition(".")[0]
                    by_name.setdefault(stem, []).append(path)
            self._known = by_name | {stem: [path] for stem, path in by_path.items()}
        return self._known


def extension_of(path: str) -> str:
    """The extension of a path in lower case, without its dot; empty where there is none."""
    return path.rpartition("/")[2].rpartition(".")[2].lower() if "." in path else ""


def has_video_extension(path: str) -> bool:
    return extension_of(path) in VIDEO_EXTENSIONS


def rows_of_samples(
    sources: str | Sequence[str] | None, names: Collection[str]
) -> Iterator[tuple[str, ListRow, str]]:
    """Yield the rows of some samples of a split: name, row, and its place.

    sources: of the split; only the lists among them can tell, not shards. names: of the samples,
    also of refused ones; a video in several lines is numbered.
    """
    paths = [sources] if isinstance(sources, str) else sources or []
    for path in filter(is_list, paths if names else []):
        rows = read_list(path)
        counts = Counter(row.video for row in rows)
        seen: Counter[str] = Counter()
        for row in rows:
            name = f"{row.video}#{seen[row.video]}" if counts[row.video] > 1 else row.video
            seen[row.video] += 1
            if name in names:
                yield name, row, f"{path}, line {row.line}"
