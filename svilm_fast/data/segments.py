"""Segments: a sample may be a part of a video, from `start` to `end` seconds.

A list gives them in columns (`START_COLUMNS`, `END_COLUMNS`); a packed sample keeps them in its
json as `segment: [start, end]`, with null for the video's end. Seconds count from the first frame
that is shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.data.decode import Choose
from svilm_fast.data.errors import SegmentError
from svilm_fast.data.timeline import Timeline

START_COLUMNS = ("start", "start_time", "start_timestamp")
END_COLUMNS = ("end", "end_time", "end_timestamp")
KEY = "segment"  # in a sample's json
# Annotations are often rounded to tenths or halves of a second.
_BEYOND_S = 0.5
# Timestamps in milliseconds are rounded by up to half of one.
_ROUNDING_S = 1e-3
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")

Segment = tuple[float, float]  # start, end in seconds; math.inf: the end of the video


def segment_of_row(columns: Mapping[str, Any], label: str) -> Segment | None:
    """The segment that a list's row describes; None where it has no start and no end.

    Seconds, or h:mm:ss. Raises SegmentError for anything else.
    """
    start = _seconds(columns, START_COLUMNS, label)
    end = _seconds(columns, END_COLUMNS, label)
    if start is None and end is None:
        return None
    return _checked(start or 0.0, math.inf if end is None else end, label)


def segment_of_json(record: Mapping[str, Any], label: str) -> Segment | None:
    """The segment in a sample's json; None where it has none. Raises SegmentError."""
    value = record.get(KEY)
    if value is None:
        return None
    try:
        first, last = value
        start, end = _float(first), math.inf if last is None else _float(last)
    except (OverflowError, TypeError, ValueError):
        raise SegmentError(
            f"{label}: segment {value!r:.60} must be [start, end] in seconds"
        ) from None
    return _checked(start, end, label)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def unread_column(columns: Iterable[str]) -> str | None:
    """A column that seems to name a part of the video in a way that is not read; None: none."""
    columns = list(columns)
    has_start = any(name in columns for name in START_COLUMNS)
    has_end = any(name in columns for name in END_COLUMNS)
    for name in columns:
        if (
            (name.startswith("start") and not has_start)
            or (name.startswith("end") and not has_end)
            or (name.startswith("timestamp") and not (has_start and has_end))
            or name == KEY
        ):
            return name
    return None


def segment_to_json(segment: Segment) -> list[float | None]:
    """The form that a sample's json keeps."""
    start, end = segment
    return [start, end if math.isfinite(end) else None]


def _seconds(columns: Mapping[str, Any], names: tuple[str, ...], label: str) -> float | None:
    name = next((name for name in names if name in columns), None)
    value = None if name is None else columns[name]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return seconds_of(value)
    except SegmentError as error:
        raise SegmentError(f"{label}: {name}={error}") from None


def seconds_of(value: Any) -> float:
    """The seconds of a number, of its text, or of h:mm:ss; the float that is nearest to the text.

    Raises SegmentError that begins with the value.
    """
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        # One rounding: a sum of floats would round the fraction and then the sum.
        seconds, dot, fraction = clock[3].partition(".")
        whole = 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + int(seconds)
        return float(f"{whole}{dot}{fraction}")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise SegmentError(f"{value!r:.60} is not a time: give seconds (12.5) or h:mm:ss") from None
    if not math.isfinite(number):
        raise SegmentError(f"{value!r:.60} must be finite")
    return number


def _checked(start: float, end: float, label: str) -> Segment:
    if not 0.0 <= start < end:
        raise SegmentError(f"{label}: a segment from {start:g} s to {end:g} s: 0 <= start < end")
    return start, end


def part(
    timeline: Timeline, segment: Segment | None, longest: float | None = None
) -> tuple[int, Timeline]:
    """The first frame of a segment, and the timeline of its frames.

    longest: seconds after which a longer segment, or video, ends; None: it does not.

    A frame belongs to the segment if it is shown at a time in [start, end). An end up to half a
    second behind the video's is the video's end. Raises SegmentError for a segment that lies
    beyond, and where the video has no timestamps.
    """
    if segment is None and longest is None:
        return 0, timeline
    segment = segment or (0.0, math.inf)
    edges = timeline.edges
    if edges is None:
        if timeline.period <= 0.0:
            raise SegmentError("the video has no timestamps: cut its segment to a file of its own")
        edges = np.arange(timeline.total + 1) * timeline.period
    times = edges - edges[0]
    start, end = segment
    if start >= times[-1] or (math.isfinite(end) and end > times[-1] + _BEYOND_S):
        until = f"{end:g} s" if math.isfinite(end) else "its end"
        raise SegmentError(
            f"the segment from {start:g} s to {until} lies outside the video of {times[-1]:.6g} s; "
            "for a clip that was cut before, remove start and end from the list"
        )
    if longest is not None:
        end = min(end, start + longest)
    slack = min(_ROUNDING_S, float(np.diff(times).min()) / 4)
    first = int(np.searchsorted(times[:-1], start + slack, side="right")) - 1
    stop = int(np.searchsorted(times[:-1], end - slack, side="left"))
    stop = max(stop, first + 1)
    if timeline.edges is None:
        return first, Timeline(stop - first, None, timeline.period)
    inside = timeline.edges[first : stop + 1].copy()
    # Only the part that lies in the segment counts for equal parts of the time.
    inside[0] = max(inside[0], timeline.edges[0] + start)
    inside[-1] = min(inside[-1], timeline.edges[0] + end)
    return first, Timeline(stop - first, inside, timeline.period)


@dataclass(frozen=True)
class InSegment:
    """A choice for `decode_clip` among the frames of a segment (None: all); picklable."""

    choose: Choose
    segment: Segment | None
    longest: float | None = None

    @property
    def decodes_everything(self) -> bool:
        return getattr(self.choose, "decodes_everything", False)

    def __call__(self, timeline: Timeline) -> np.ndarray:
        first, frames = part(timeline, self.segment, self.longest)
        return first + self.choose(frames)


@dataclass(frozen=True)
class FrameRange:
    """A choice for `decode_clip`: at most `count` frames from number `first` on; picklable."""

    first: int
    count: int

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return np.arange(self.first, min(self.first + self.count, timeline.total))
