"""`svilm data convert`: public annotation files to a JSONL list, with counts and its hash."""

from __future__ import annotations

import hashlib
import inspect
import json
import mmap
import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import typer

from svilm_fast.core.collection import collection_paused
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted
from svilm_fast.data.formats import FORMATS, Notes, Rows, reader_of
from svilm_fast.data.source_ids import KEY as SOURCE_ID

_SHOWN = 5  # missing videos that are printed
_COUNTED = (("questions", "question"), ("segments", "segment"))


@dataclass
class Conversion:
    """What was written: rows, distinct videos and further counts, and the list's SHA-256.

    missing: videos that are not in the video folder, with the reason; their rows are in the list.
    """

    out: Path
    rows: int = 0
    videos: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    sha256: str = ""
    missing: dict[str, str] | None = None
    notes: Notes = field(default_factory=Counter)

    @property
    def missing_list(self) -> Path:
        return self.out.with_suffix(".missing.txt")

    def lines(self) -> list[str]:
        counts = [counted(self.rows, "row"), counted(self.videos, "video")]
        counts += [counted(number, noun) for noun, number in self.counts.items()]
        lines = [f"{self.out}: {', '.join(counts)}", f"SHA-256 {self.sha256}"]
        lines += [f"note: {number:,} {what}" for what, number in self.notes.items()]
        if self.missing is not None:
            names = ", ".join(list(self.missing)[:_SHOWN])
            more = ", ..." if len(self.missing) > _SHOWN else ""
            listed = f" ({names}{more}), listed in {self.missing_list}" if self.missing else ""
            lines.append(f"{counted(len(self.missing), 'video')} missing{listed}")
        return lines


def convert_files(
    name: str,
    paths: Sequence[str],
    out: Path,
    *,
    videos: str | None = None,
    options: Mapping[str, str] | None = None,
    group: bool = False,
) -> Conversion:
    """Read files of the format `name` and write their rows to the list `out`.

    videos: folder in which every video is looked for; None: none is. options: of the reader. group:
    the rows of a source video follow one another, in the order of their first ones. Memory grows by
    16 bytes a row (32 with `group`), and by the names of the videos where they are looked for.
    An existing file is left as it is: it is an error unless it holds the same bytes.

    Raises UserError, and ListFormatError naming file, line and field.
    """
    reader = reader_of(name)
    given = _checked_options(name, reader, options or {})
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: a list ends in .jsonl")
    result = Conversion(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    grouped = out.with_name(f".{out.name}.{os.getpid()}.grouped.tmp")
    names: dict[str, None] | None = None if videos is None else {}
    try:
        with collection_paused(), draft.open("xb") as file:
            written = _write(reader(paths, result.notes, **given), file, result, names)
        result.sha256 = written.sha256
        if group and result.rows:
            with draft.open("rb") as file, grouped.open("xb") as target:
                result.sha256 = _grouped(file, target, written)
            grouped.replace(draft)
        if not result.rows:
            raise UserError(f"{', '.join(paths)}: no rows")
        if out.exists() and _sha256(out) != result.sha256:
            raise UserError(f"{out} exists with other content: remove it, or give another name")
        if videos is not None:
            result.missing = _missing(videos, names or {})
            lines = "".join(f"{video}\t{why}\n" for video, why in result.missing.items())
            if lines or result.missing_list.exists():
                _place(lines.encode(), result.missing_list, result.sha256)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
        grouped.unlink(missing_ok=True)
    return result


def _place(content: bytes, path: Path, sha256: str) -> None:
    """Write the names of missing videos; the first line says of which list."""
    head = b"# missing videos of the list with SHA-256 "
    if path.exists() and not path.read_bytes().startswith(head):
        raise UserError(f"{path} exists and is no list of missing videos: remove it")
    path.write_bytes(head + sha256.encode() + b"\n" + content)


def _checked_options(name: str, reader: Any, options: Mapping[str, str]) -> dict[str, str]:
    parameters = inspect.signature(reader).parameters.values()
    known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UserError(f"the format {name} has no option {option!r}; {has}")
    return dict(options)


@dataclass
class _Written:
    """The lines of a list: its SHA-256, their ends in the file, and a hash of their sources."""

    sha256: str
    ends: array[int]
    sources: array[int]


def _write(
    rows: Rows, file: BinaryIO, result: Conversion, names: dict[str, None] | None
) -> _Written:
    digest = hashlib.sha256()
    # Hashes: ten million captions are too large to keep.
    captions_seen, sources, ends = array("q"), array("q"), array("q")
    videos_seen = array("q")
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        # Half a surrogate pair, which truncated JSON holds, cannot be written as UTF-8.
        data = text.encode(errors="replace")
        file.write(data)
        digest.update(data)
        result.rows += 1
        videos_seen.append(hash(row["video"]))
        sources.append(hash(row.get(SOURCE_ID, row["video"])))
        ends.append(file.tell())
        if names is not None:
            names[row["video"]] = None
        captions = [row["caption"]] if "caption" in row else row.get("captions", ())
        captions = captions.values() if isinstance(captions, dict) else captions
        result.counts["caption"] += len(captions)
        captions_seen.extend(map(hash, captions))
        for key, noun in _COUNTED:
            result.counts[noun] += len(row.get(key, ()))
    distinct = _distinct(captions_seen)
    if distinct < result.counts["caption"]:
        result.counts["distinct caption"] = distinct
    result.counts = +result.counts
    result.videos = _distinct(videos_seen)
    return _Written(digest.hexdigest(), ends, sources)


def _distinct(hashes: array[int]) -> int:
    return len(np.unique(np.frombuffer(hashes, np.int64))) if hashes else 0


def _grouped(file: BinaryIO, target: BinaryIO, written: _Written) -> str:
    """Write the lines of a list source by source; return the SHA-256."""
    digest = hashlib.sha256()
    ends = np.frombuffer(written.ends, np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    _, first, source = np.unique(
        np.frombuffer(written.sources, np.int64), return_index=True, return_inverse=True
    )
    order = np.argsort(first[source], kind="stable")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        for start, end in zip(starts[order].tolist(), ends[order].tolist()):
            target.write(lines[start:end])
            digest.update(lines[start:end])
    return digest.hexdigest()


def _missing(folder: str, videos: Mapping[str, None]) -> dict[str, str]:
    from svilm_fast.data.errors import MissingFileError
    from svilm_fast.data.lists import VideoFolder

    found, missing = VideoFolder(folder), {}
    for video in videos:
        try:
            found.locate(video)
        except MissingFileError as error:
            missing[video] = str(error)
    return missing


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(
    format_name: Annotated[
        str, typer.Argument(metavar="FORMAT", help=f"one of {', '.join(sorted(FORMATS))}")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="the format's files; none: describe the format"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the JSONL list to write")] = None,
    videos: Annotated[
        str | None, typer.Option(help="folder of the videos; reports those that are missing")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="option of the format")
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="write the rows of a source video one after another")
    ] = False,
) -> None:
    """Convert annotation files of a public data set to a JSONL list; print counts and its hash."""
    if not paths:
        print(f"{format_name}: {inspect.getdoc(reader_of(format_name))}")
        return
    if out is None:
        raise UserError("give the list to write with --out list.jsonl")
    options = {}
    for each in option or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"--option {each}: give NAME=VALUE")
        options[name] = value
    result = convert_files(format_name, paths, out, videos=videos, options=options, group=group)
    print("\n".join(result.lines()))
