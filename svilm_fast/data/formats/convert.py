"""`svilm data convert`: public annotation files to a JSONL list, with counts and its hash."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from svilm_fast.core.collection import collection_paused
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted
from svilm_fast.data.formats import FORMATS, Notes, Rows, reader_of

_SHOWN = 5  # missing videos that are printed
_COUNTED = (("questions", "question"), ("segments", "segment"))


@dataclass
class Conversion:
    """What was written: rows, distinct videos and further counts, and the list's SHA-256.

    missing: videos that are not in the video folder, with the reason; their rows are in the list.
    """

    out: Path
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    videos: dict[str, None] = field(default_factory=dict)
    sha256: str = ""
    missing: dict[str, str] | None = None
    notes: Notes = field(default_factory=Counter)

    @property
    def missing_list(self) -> Path:
        return self.out.with_suffix(".missing.txt")

    def lines(self) -> list[str]:
        counts = [counted(self.rows, "row"), counted(len(self.videos), "video")]
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
) -> Conversion:
    """Read files of the format `name` and write their rows to the list `out`.

    videos: folder in which every video is looked for; None: none is. options: of the reader.
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
    try:
        with collection_paused(), draft.open("xb") as file:
            result.sha256 = _write(reader(paths, result.notes, **given), file, result)
        if not result.rows:
            raise UserError(f"{', '.join(paths)}: no rows")
        if out.exists() and _sha256(out) != result.sha256:
            raise UserError(f"{out} exists with other content: remove it, or give another name")
        if videos is not None:
            result.missing = _missing(videos, result.videos)
            lines = "".join(f"{video}\t{why}\n" for video, why in result.missing.items())
            if lines or result.missing_list.exists():
                _place(lines.encode(), result.missing_list, result.sha256)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
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


def _write(rows: Rows, file: BinaryIO, result: Conversion) -> str:
    digest = hashlib.sha256()
    distinct: set[int] = set()  # hashes: ten million captions are too large to keep
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        # Half a surrogate pair, which truncated JSON holds, cannot be written as UTF-8.
        data = text.encode(errors="replace")
        file.write(data)
        digest.update(data)
        result.rows += 1
        result.videos[row["video"]] = None
        captions = [row["caption"]] if "caption" in row else row.get("captions", ())
        result.counts["caption"] += len(captions)
        distinct.update(map(hash, captions))
        for key, noun in _COUNTED:
            result.counts[noun] += len(row.get(key, ()))
    if len(distinct) < result.counts["caption"]:
        result.counts["distinct caption"] = len(distinct)
    result.counts = +result.counts
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
    result = convert_files(format_name, paths, out, videos=videos, options=options)
    print("\n".join(result.lines()))
