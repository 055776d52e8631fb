"""ActivityNet JSON of temporal annotations and of predictions (also THUMOS in this format)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_atomically
from svilm_fast.data import files
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    FILE_BYTES,
    checked,
    choice,
    number_field,
    one_file,
    read_json,
    without_extension,
)
from svilm_fast.data.formats.common import field as required

BadSegments = Literal["error", "keep", "drop"]
_NUMBERS = (int, float)
_LARGE = 1e12  # seconds
_ROUNDING_S = 0.1  # durations and segments of the public files are rounded


class AnnotatedSegment(NamedTuple):
    """An action from `start` to `end`, seconds."""

    start: float
    end: float
    label: str


class PredictedSegment(NamedTuple):
    """A predicted action, seconds."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video of a subset. duration: seconds; None where the format does not say."""

    name: str
    subset: str
    duration: float | None
    segments: tuple[AnnotatedSegment, ...]


@dataclass
class TemporalAnnotations:
    """The videos of a file by id. sha256: of the file. notes: what was found odd, counted."""

    videos: dict[str, AnnotatedVideo]
    sha256: str
    notes: Counter[str] = field(default_factory=Counter)

    def subset(self, name: str) -> dict[str, AnnotatedVideo]:
        """The videos of a subset, in the order of the file. Raises UserError if it has none."""
        found = {key: video for key, video in self.videos.items() if video.subset == name}
        if not found:
            subsets = dict.fromkeys(video.subset for video in self.videos.values())
            raise UserError(
                f"the annotations have no subset {name!r}; they have {', '.join(subsets) or 'none'}"
            )
        return found

    def classes(self, subset: str | None = None) -> tuple[str, ...]:
        """The labels of a subset (None: of all) in the order of the file."""
        videos = self.videos if subset is None else self.subset(subset)
        return tuple(dict.fromkeys(s.label for v in videos.values() for s in v.segments))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, local or remote."""
    return hashlib.sha256(files.read_bytes(str(path), FILE_BYTES)).hexdigest()


def known_video(name: str, known: Container[str]) -> str | None:
    """The id in `known` that `name` means: itself, without extension, without or with `v_`."""
    stem = without_extension(name)
    candidates = (name, stem, stem.removeprefix("v_"), f"v_{stem}")
    return next((candidate for candidate in candidates if candidate in known), None)


def read_annotations(
    path: str | Path, *, bad_segments: BadSegments = "error"
) -> TemporalAnnotations:
    """Read `{database: {id: {subset, duration, annotations: [{segment: [s, e], label}]}}}`.

    bad_segments: a segment that is negative, ends before it starts or reaches beyond the video is
    an error, is kept as the official evaluator does, or is dropped; the last two are counted in
    `notes`. Raises ListFormatError that names file and JSON path.
    """
    videos, notes = _annotated(str(path), bad_segments)
    return TemporalAnnotations(videos, file_sha256(path), notes)


def _annotated(
    path: str, bad_segments: BadSegments
) -> tuple[dict[str, AnnotatedVideo], Counter[str]]:
    """The videos of a file and what was found odd; as `read_annotations`."""
    database = required(checked(read_json(path), dict, path), "database", dict, path)
    if not database:
        raise ListFormatError(f"{path}: database: holds no video")
    notes: Counter[str] = Counter()
    videos = {}
    for name, record in database.items():
        where = f"{path}: database.{name}"
        record = checked(record, dict, where)
        duration = number_field(record, "duration", where) if "duration" in record else None
        end = _LARGE if duration is None else duration + _ROUNDING_S
        entries = required(record, "annotations", list, where)
        found = _plain_segments(entries, end)
        for number, entry in enumerate(entries if len(found) < len(entries) else ()):
            if not number:
                found = []
            label = f"{where}.annotations[{number}]"
            segment = _segment(checked(entry, dict, label), label)
            wrong = _fault(segment, duration)
            if wrong and bad_segments == "error":
                raise ListFormatError(
                    f"{where}.annotations[{number}], field 'segment': {wrong}; "
                    "correct it, or use --bad-segments keep or drop"
                )
            if wrong:
                notes[f"segments that are wrong, {bad_segments}"] += 1
            if not wrong or bad_segments == "keep":
                found.append(segment)
        repeated = len(found) - len(set(found)) if len(found) > 1 else 0
        if repeated:
            notes["annotations that are repeated"] += repeated
        subset = required(record, "subset", str, where)
        videos[name] = AnnotatedVideo(name, subset, duration, tuple(found))
    return videos, notes


def _pair(record: dict[str, Any], label: str) -> tuple[float, float]:
    pair = required(record, "segment", list, label)
    if len(pair) != 2:
        raise ListFormatError(f"{label}, field 'segment': expected [start, end], found {pair!r}")
    ends = dict(zip(("segment[0]", "segment[1]"), pair))
    return number_field(ends, "segment[0]", label), number_field(ends, "segment[1]", label)


def _segment(record: dict[str, Any], label: str) -> AnnotatedSegment:
    return AnnotatedSegment(*_pair(record, label), required(record, "label", str, label))


def _plain_segments(entries: list[Any], limit: float) -> list[AnnotatedSegment]:
    """Entries that end by `limit`, read fast; fewer than given: look at all of them closely."""
    make = tuple.__new__  # the same as AnnotatedSegment(...), in a third of the time
    try:
        return [
            make(AnnotatedSegment, (start + 0.0, end + 0.0, label))
            for entry in entries
            for (start, end), label in ((entry["segment"], entry["label"]),)
            if type(start) in _NUMBERS
            and type(end) in _NUMBERS
            and 0 <= start < end <= limit
            and label.strip()
        ]
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        return []


def _fault(segment: AnnotatedSegment, duration: float | None) -> str | None:
    start, end = segment.start, segment.end
    if start < 0:
        return f"begins at {start:g} s, before the video"
    if end <= start:
        return f"ends at {end:g} s, not after its start at {start:g} s"
    if duration is not None and end > duration + _ROUNDING_S:
        return f"ends at {end:g} s, after the video's end at {duration:g} s"
    return None


def read(
    paths: Sequence[str], notes: Notes, *, subset: str = "", bad_segments: str = "drop"
) -> Rows:
    """Read ActivityNet JSON with temporal annotations; one row for each annotated segment.

    subset: training, validation or testing; empty: all. bad_segments: drop or keep segments that
    are empty, negative or beyond the video, or error.
    """
    path = one_file(paths, (".json",), "annotations")
    choice(bad_segments, ("error", "keep", "drop"), "bad_segments")
    videos, odd = _annotated(path, bad_segments)  # type: ignore[arg-type]
    notes.update(odd)
    if subset:
        videos = TemporalAnnotations(videos, "").subset(subset)
    for video in videos.values():
        for start, end, label in video.segments:
            yield {
                "video": video.name,
                "caption": label,
                "start": start,
                "end": end,
                "label": label,
                "subset": video.subset,
            }


def annotations_json(videos: Mapping[str, AnnotatedVideo], version: str) -> dict[str, Any]:
    """The official layout of annotations."""
    return {
        "version": version,
        "taxonomy": [],
        "database": {
            name: {
                "subset": video.subset,
                **({} if video.duration is None else {"duration": video.duration}),
                "annotations": [
                    {"segment": [start, end], "label": label}
                    for start, end, label in video.segments
                ],
            }
            for name, video in videos.items()
        },
    }


def read_predictions(path: str | Path) -> dict[str, list[PredictedSegment]]:
    """Read `{results: {id: [{segment, label, score}]}}`.

    Raises ListFormatError that names file and JSON path.
    """
    path = str(path)
    results = required(checked(read_json(path), dict, path), "results", dict, path)
    if not results:
        raise ListFormatError(f"{path}: results: holds no video")
    found = {}
    for name, entries in results.items():
        segments = []
        for number, entry in enumerate(checked(entries, list, f"{path}: results.{name}")):
            label = f"{path}: results.{name}[{number}]"
            record = checked(entry, dict, label)
            score = number_field(record, "score", label)
            segments.append(PredictedSegment(*_segment(record, label), score))
        found[name] = segments
    return found


def write_predictions(
    path: str | Path,
    predictions: Mapping[str, Sequence[PredictedSegment]],
    *,
    version: str = "VERSION 1.3",
    external_data: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions in the official layout, as other evaluators read it."""
    results = {
        name: [
            {"segment": [start, end], "label": label, "score": score}
            for start, end, label, score in segments
        ]
        for name, segments in predictions.items()
    }
    content = {"version": version, "results": results, "external_data": dict(external_data or {})}
    write_atomically(Path(path), json.dumps(content).encode())


def read_blocked(path: str | Path, known: Container[str] = ()) -> frozenset[str]:
    """The video ids of a blocked list: a JSON list, an object whose keys are ids, or plain lines.

    An id that means one of the `known` videos (`known_video`) becomes that one's. Raises
    ListFormatError for an empty list.
    """
    path = str(path)
    if path.lower().endswith(".json"):
        content = read_json(path)
        names = list(content) if isinstance(content, dict) else checked(content, list, path)
        names = [checked(name, str, f"{path}[{i}]") for i, name in enumerate(names)]
    else:
        text = files.read_bytes(path, FILE_BYTES).decode("utf-8-sig")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ListFormatError(f"{path}: holds no video id")
    return frozenset(known_video(name, known) or name for name in names)
