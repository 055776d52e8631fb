"""CSV and JSONL lists of videos and captions, MSR-VTT 1k-A style files included."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from typing import Any

from svilm_fast.data import files
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import ListFormatError, MissingFileError, SampleJsonError
from svilm_fast.data.shards import parse_json

VIDEO_COLUMNS = ("video", "video_id", "videoid", "path", "file", "file_name", "key", "id")
CAPTION_COLUMNS = ("caption", "sentence", "text", "captions", "description", "name")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_LIST_BYTES = 1 << 32


@dataclass(frozen=True)
class ListRow:
    """A line of a list: the video as named there, its caption, and every other column."""

    video: str
    caption: str | None
    line: int
    extra: dict[str, Any] = field(default_factory=dict)


def is_list(path: str) -> bool:
    return path.lower().endswith(LIST_SUFFIXES)


def read_list(path: str) -> list[ListRow]:
    """The rows of a CSV, TSV (with a header line) or JSONL file, in order.

    The video column is the first of VIDEO_COLUMNS that exists, the caption column the first of
    CAPTION_COLUMNS; a 1k-A file (`key,vid_key,video_id,sentence`) gives `video_id` and `sentence`.
    Raises MissingFileError, or ListFormatError naming the line.
    """
    try:
        text = files.read_bytes(path, _LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListFormatError(f"{path}: not UTF-8 text ({error.reason})") from None
    records = _json_lines(path, text) if path.lower().endswith(".jsonl") else _table(path, text)
    if not records:
        raise ListFormatError(f"{path}: no rows")
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    video = _first(VIDEO_COLUMNS, columns)
    caption = _first(CAPTION_COLUMNS, [c for c in columns if c != video])
    if video is None:
        raise ListFormatError(
            f"{path}: no video column among {', '.join(columns)}; name it one of "
            f"{', '.join(VIDEO_COLUMNS)}"
        )
    return [_row(path, line, record, video, caption) for line, record in records]


def _first(wanted: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in wanted if name in columns), None)


def _row(path: str, line: int, record: dict[str, Any], video: str, caption: str | None) -> ListRow:
    name = record.get(video)
    if not isinstance(name, (str, int)) or not str(name).strip():
        raise ListFormatError(f"{path}, line {line}: the column {video!r} is empty")
    text = record.get(caption) if caption else None
    extra = {k: v for k, v in record.items() if k not in (video, caption)}
    if text is not None and not isinstance(text, str):
        extra[str(caption)] = text
    return ListRow(str(name).strip(), text.strip() if isinstance(text, str) else None, line, extra)


def _json_lines(path: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append((number, parse_json(line.encode(), f"{path}, line {number}")))
            except SampleJsonError as error:
                raise ListFormatError(str(error)) from None
    return records


def _table(path: str, text: str) -> list[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    records = []
    try:
        for record in reader:
            if None in record or None in record.values():
                raise ListFormatError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or [])} "
                    "columns; quote captions that hold the separator"
                )
            records.append((reader.line_num, {k.strip().lower(): v for k, v in record.items()}))
    except csv.Error as error:
        raise ListFormatError(f"{path}, line {reader.reader.line_num}: {error}") from None
    return records


class VideoFolder:
    """Finds the videos that a list names, with or without their extension, below one folder."""

    def __init__(self, folder: str) -> None:
        if files.protocol(folder) is None and not os.path.isdir(folder):
            raise MissingFileError(
                f"the video folder {folder!r} does not exist: set data.videos to the right one"
            )
        self.folder = folder.rstrip("/")
        self._known: dict[str, list[str]] | None = None

    def locate(self, name: str) -> str:
        """The path of a video: `name` as it is, with an extension added, or in a folder below.

        Raises MissingFileError, also for a name outside the folder or of several videos.
        """
        if name.startswith(("/", "\\")) or ".." in name.split("/") or ":" in name:
            raise MissingFileError(f"{name!r} is not inside the video folder {self.folder!r}")
        path = f"{self.folder}/{name}"
        if files.protocol(path) is None:
            if os.path.isfile(path):
                return path
        elif has_video_extension(name) and files.exists(path):
            return path
        found = self._by_name().get(name, [])
        if not found:
            raise MissingFileError(f"no video {name!r} in {self.folder!r} or below it")
        if len(found) > 1:
            raise MissingFileError(
                f"several videos are called {name!r} ({', '.join(found[:3])}): name the folder too"
            )
        return f"{self.folder}/{found[0]}"

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
