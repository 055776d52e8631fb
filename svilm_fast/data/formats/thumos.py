"""THUMOS14 temporal annotations: one text file per class, `video_test_0000324  49.2  53.5`."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from svilm_fast.data import files
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.activitynet import (
    AnnotatedSegment,
    AnnotatedVideo,
    TemporalAnnotations,
)
from svilm_fast.data.formats.common import FILE_BYTES, read_lines

AMBIGUOUS = "Ambiguous"
_NAME = re.compile(r"(?P<label>.+)_(?P<subset>test|val)\.txt")
_SUBSETS = {"test": "testing", "val": "validation"}


def read_annotations(paths: Sequence[str | Path]) -> TemporalAnnotations:
    """Read `<Class>_test.txt` and `<Class>_val.txt`; segments of `Ambiguous` are left out.

    These files say neither durations nor which videos have no action. Lines name video, start and
    end in seconds. Raises ListFormatError that names file and line.
    """
    notes: Counter[str] = Counter()
    found: dict[str, tuple[str, list[AnnotatedSegment]]] = {}
    digest = hashlib.sha256()
    for path in sorted(map(str, paths)):
        digest.update(files.read_bytes(path, FILE_BYTES))
        name = _NAME.fullmatch(Path(path).name)
        if name is None:
            raise ListFormatError(
                f"{path}: expected a file named <Class>_test.txt or <Class>_val.txt"
            )
        for line, text in read_lines(path):
            cells = text.split()
            where = f"{path}, line {line}"
            if len(cells) != 3:
                raise ListFormatError(f"{where}: expected video, start and end, found {text!r}")
            start, end = (_seconds(c, where, n) for c, n in zip(cells[1:], ("start", "end")))
            if end <= start:
                raise ListFormatError(f"{where}, field 'end': {end:g} s, not after {start:g} s")
            if name["label"] == AMBIGUOUS:
                notes["ambiguous segments left out"] += 1
                continue
            _, segments = found.setdefault(cells[0], (_SUBSETS[name["subset"]], []))
            segment = AnnotatedSegment(start, end, name["label"])
            notes["annotations that are repeated"] += segment in segments
            segments.append(segment)
    if not found:
        raise ListFormatError(f"{', '.join(map(str, paths)) or 'no files'}: no annotation")
    videos = {v: AnnotatedVideo(v, subset, None, tuple(s)) for v, (subset, s) in found.items()}
    return TemporalAnnotations(videos, digest.hexdigest(), +notes)


def _seconds(text: str, where: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ListFormatError(f"{where}, field {name!r}: expected seconds from 0, found {text!r}")
    return value


def read(paths: Sequence[str], notes: Notes) -> Rows:
    """Read THUMOS14's text files, one for each class; one row for each annotated segment."""
    annotations = read_annotations(paths)
    notes.update(annotations.notes)
    for video in annotations.videos.values():
        for start, end, label in video.segments:
            yield {
                "video": video.name,
                "caption": label,
                "start": start,
                "end": end,
                "label": label,
                "subset": video.subset,
            }
