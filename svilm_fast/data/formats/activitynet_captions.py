"""ActivityNet Captions: the sentences of a video as a paragraph, or each with its segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    captioned,
    checked,
    choice,
    field,
    number_field,
    once,
    paragraph,
    read_ids,
    read_json,
    shown,
)

PREFIX = "v_"
_NUMBERS = (int, float)
_LARGE = 1e12  # seconds
_ROUNDING_S = 0.5  # as `data.segments` allows


def read(
    paths: Sequence[str],
    notes: Notes,
    *,
    captions: str = "paragraph",
    prefix: str = "keep",
    invalid: str = "error",
) -> Rows:
    """Read `val_1.json` (duration, timestamps, sentences by id) and, if given, a list of ids.

    captions: `paragraph` writes one row for each video, all its sentences joined in file order;
    `segments` writes one row for each sentence, with `start` and `end`.

    prefix: ids begin with `v_`. `keep` leaves it, `drop` removes it, `add` adds it where it is
    missing, to match the names of the video files. A list of ids may have it or not.

    invalid: with `segments`, a segment of no length, before 0, beyond the video or given twice is
    an `error`; `skip` leaves it out and counts it. Paragraphs do not depend on segments.
    """
    choice(captions, ("paragraph", "segments"), "captions")
    choice(prefix, ("keep", "drop", "add"), "prefix")
    choice(invalid, ("error", "skip"), "invalid")
    if not 1 <= len(paths) <= 2 or not paths[0].lower().endswith(".json"):
        raise ListFormatError(
            f"expected val_1.json and at most one list of ids after it, got {', '.join(paths)}"
        )
    source, *listing = paths
    names: dict[str, str] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in checked(read_json(source), dict, source).items():
        bare = name.removeprefix(PREFIX)
        if bare in names:
            raise ListFormatError(f"{source}, {name!r}: is there with and without {PREFIX!r}")
        names[bare] = {"keep": name, "drop": bare, "add": PREFIX + bare}[prefix]
        entries[bare] = _entry(entry, f"{source}, {name!r}")
    wanted = None
    if listing:
        ids = read_ids(listing[0])
        wanted = {}
        lines: dict[str, int] = {}
        for each, n in ids.items():
            once(lines, each.removeprefix(PREFIX), n, f"{listing[0]}, id {n}")
            wanted[each.removeprefix(PREFIX)] = f"{listing[0]}, id {n}"
    texts = {bare: paragraph(entry["sentences"]) for bare, entry in entries.items()}
    for row in captioned(texts, wanted, notes, source):
        bare, video = row["video"], names[row["video"]]
        if captions == "paragraph":
            yield {"video": video, "caption": row["caption"]}
        else:
            label = f"{source}, {video!r}"
            yield from _segments(video, entries[bare], label, notes, skip=invalid == "skip")


def _entry(entry: Any, label: str) -> dict[str, Any]:
    sentences = field(checked(entry, dict, label), "sentences", list, label)
    if not sentences:
        raise ListFormatError(f"{label}, field 'sentences': is empty")
    if all(type(sentence) is str and sentence.strip() for sentence in sentences):
        return entry
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ListFormatError(
                f"{label}, field 'sentences'[{place}]: expected a text, found {shown(sentence)}"
            )
    return entry


def _segments(video: str, entry: dict[str, Any], label: str, notes: Notes, *, skip: bool) -> Rows:
    duration = number_field(entry, "duration", label)
    times, sentences = field(entry, "timestamps", list, label), entry["sentences"]
    if len(times) != len(sentences):
        raise ListFormatError(
            f"{label}, field 'timestamps': {len(times)} for {len(sentences)} sentences"
        )
    seen = set()
    for place, (time, sentence) in enumerate(zip(times, sentences)):
        start, end = _seconds(time, label, place)
        wrong = _wrong(start, end, duration)
        if wrong is None and (start, end, sentence) in seen:
            wrong = "repeats an earlier segment with the same sentence"
        seen.add((start, end, sentence))
        if wrong is None:
            yield {"video": video, "caption": sentence.strip(), "start": start, "end": end}
        elif skip:
            notes["segments left out as invalid"] += 1
        else:
            where = f"{label}, field 'timestamps'[{place}]"
            raise ListFormatError(f"{where}: [{start:g}, {end:g}] {wrong}")


def _seconds(time: Any, label: str, place: int) -> tuple[float, float]:
    if type(time) is list and len(time) == 2:
        start, end = time
        if type(start) in _NUMBERS and type(end) in _NUMBERS and -_LARGE < start < end < _LARGE:
            return float(start), float(end)
    where = f"{label}, field 'timestamps'[{place}]"
    if not (isinstance(time, list) and len(time) == 2):
        raise ListFormatError(f"{where}: expected [start, end], found {shown(time)}")
    start, end = (number_field({"": each}, "", where) for each in time)
    return start, end


def _wrong(start: float, end: float, duration: float) -> str | None:
    if start < 0:
        return "begins before 0"
    if end <= start:
        return "ends before it begins, or has no length"
    if end > duration + _ROUNDING_S:
        return f"ends beyond the video of {duration:g} s"
    return None
