"""InternVid (arXiv 2307.06942): clips of YouTube videos with generated captions and scores."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from svilm_fast.data.errors import ListFormatError, SegmentError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import number_field, shown
from svilm_fast.data.lists import read_records
from svilm_fast.data.segments import seconds_of
from svilm_fast.data.source_ids import KEY as SOURCE_ID
from svilm_fast.data.tables import column_name

_IDS = ("youtubeid", "youtube_id", "videoid", "video_id")
_STARTS = ("start_timestamp", "start_time", "start")
_ENDS = ("end_timestamp", "end_time", "end")
_CAPTIONS = ("caption", "captions", "text")
_GRAINS = ("coarse", "fine", "fused")
_FIELDS = ("{id}", "{start}", "{end}")
_YOUTUBE_ID = re.compile(r"[\w-]{11}", re.ASCII)
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*(\S+)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def read(
    paths: Sequence[str],
    notes: Notes,
    *,
    video: str = "{id}",
    where: str = "",
    coarse: str = "",
    fine: str = "",
    fused: str = "",
) -> Rows:
    """Read JSONL, Parquet or CSV files: YoutubeID, Start_timestamp, End_timestamp, Caption.

    Names of columns are read in any case, and all other columns, such as scores, are kept.
    Timestamps are h:mm:ss.fff or seconds. `source_id` of a row is its YouTube id.

    video: its name, with {id}, and {start} and {end} as they are written in the file. With
    {start} or {end} a video is the clip alone; otherwise the row gets start and end in seconds.
    where: scores that a row must have, such as UMT_Score>=0.4,Aesthetic_Score>4.5. coarse, fine,
    fused: columns of captions by grain, instead of Caption.
    """
    if not paths:
        raise ListFormatError("expected at least one JSONL, Parquet or CSV file")
    conditions = [_condition(each) for each in where.split(",") if each.strip()]
    grains = {grain: column_name(column) for grain, column in zip(_GRAINS, (coarse, fine, fused))}
    grains = {grain: column for grain, column in grains.items() if column}
    is_clip = "{start}" in video or "{end}" in video
    if "{id}" not in video or re.sub(r"\{(id|start|end)\}", "", video).count("{"):
        raise ListFormatError(
            f"option video={video}: give {{id}}, and at most {', '.join(_FIELDS)}"
        )
    for path in paths:
        for line, record in read_records(path):
            label = f"{path}, line {line}"
            if not _passes(record, conditions, label, notes):
                continue
            identity_column, identity = _text(record, _IDS, label)
            start_column, start, first = _time(record, _STARTS, label)
            end_column, end, last = _time(record, _ENDS, label)
            if last <= first:
                raise ListFormatError(
                    f"{label}, field {end_column!r}: {shown(end)} is not after {start_column}, "
                    f"{shown(start)}"
                )
            if _YOUTUBE_ID.fullmatch(identity) is None:
                notes["rows whose id is no YouTube id"] += 1
            row: dict[str, Any] = {
                "video": video.replace("{id}", identity)
                .replace("{start}", str(start).strip())
                .replace("{end}", str(end).strip()),
                **({} if is_clip else {"start": first, "end": last}),
            }
            used = {identity_column, start_column, end_column, *grains.values()}
            if grains:
                row["captions"] = _by_grain(record, grains, label)
            else:
                caption_column, row["caption"] = _text(record, _CAPTIONS, label)
                used.add(caption_column)
            row[SOURCE_ID] = identity
            yield row | {k: v for k, v in record.items() if k not in used and k not in row}


def _text(record: dict[str, Any], names: Sequence[str], label: str) -> tuple[str, str]:
    """The first of some columns that exists, and its text, which is not blank."""
    column = _column(record, names, label)
    value = record[column]
    if not isinstance(value, str) or not value.strip():
        raise ListFormatError(f"{label}, field {column!r}: expected a text, found {shown(value)}")
    return column, value.strip()


def _column(record: dict[str, Any], names: Sequence[str], label: str) -> str:
    column = next((name for name in names if name in record), None)
    if column is None:
        have = ", ".join(list(record)[:8]) or "none"
        raise ListFormatError(f"{label}: no field {names[0]!r}; it has: {have}")
    return column


def _time(record: dict[str, Any], names: Sequence[str], label: str) -> tuple[str, Any, float]:
    """A column of times, its cell, and the cell in seconds."""
    column = _column(record, names, label)
    try:
        return column, record[column], seconds_of(record[column])
    except SegmentError as error:
        raise ListFormatError(f"{label}, field {column!r}: {error}") from None


def _by_grain(record: dict[str, Any], grains: dict[str, str], label: str) -> dict[str, str]:
    """The captions of a row; a grain whose cell is empty is left out, but not all of them."""
    found = {}
    for grain, column in grains.items():
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            raise ListFormatError(
                f"{label}, field {column!r}: expected a text, found {shown(value)}"
            )
        if value and value.strip():
            found[grain] = value.strip()
    if not found:
        raise ListFormatError(f"{label}: no caption in the fields {', '.join(grains.values())}")
    return found


Condition = tuple[str, str, Callable[[float, float], bool], float]  # shown, column, test, limit


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        limit = float(match[3])
        if limit != limit:
            raise ValueError
    except ValueError:
        raise ListFormatError(
            f"option where: {text.strip()!r} is no condition: give COLUMN>=NUMBER, with >=, >, <= "
            "or <, several with commas"
        ) from None
    assert match is not None
    return text.strip(), column_name(match[1]), _COMPARE[match[2]], limit


def _passes(
    record: dict[str, Any], conditions: Sequence[Condition], label: str, notes: Notes
) -> bool:
    for text, column, test, limit in conditions:
        if not test(number_field(record, column, label), limit):
            notes[f"rows left out by {text}"] += 1
            return False
    return True
