"""Scores of a video-level classifier in CUHK's format: `{"results": {id: [C]}, "class": [C]}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svilm_fast.core.files import write_atomically
from svilm_fast.core.text import counted
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats.activitynet import file_sha256
from svilm_fast.data.formats.common import checked, read_json
from svilm_fast.data.formats.common import field as required


@dataclass(frozen=True)
class VideoClassScores:
    """Scores of every class for every video.

    classes: C names in the order of the file, which is its own and never sorted. scores: float64
    [C] by video id. name, sha256: of the file, for the protocol.
    """

    classes: tuple[str, ...]
    scores: dict[str, np.ndarray]
    name: str = ""
    sha256: str = ""


def read_class_scores(path: str | Path) -> VideoClassScores:
    """Read a classifier's file. Raises ListFormatError that names file, video and entry."""
    text = str(path)
    content = checked(read_json(text), dict, text)
    names = required(content, "class", list, text)
    classes = tuple(checked(n, str, f"{text}: class[{i}]") for i, n in enumerate(names))
    repeated = next((n for n in classes if classes.count(n) > 1), None)
    if repeated is not None:
        raise ListFormatError(f"{text}: class: {repeated!r} appears twice")
    results = required(content, "results", dict, text)
    if not classes or not results:
        raise ListFormatError(f"{text}: {'results' if classes else 'class'}: is empty")
    scores = {}
    for video, row in results.items():
        where = f"{text}: results.{video}"
        row = checked(row, list, where)
        if len(row) != len(classes):
            raise ListFormatError(
                f"{where}: {counted(len(row), 'score')}, expected one for each of the "
                f"{counted(len(classes), 'name')} in 'class'"
            )
        for place, value in enumerate(row):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ListFormatError(
                    f"{where}[{place}]: expected a finite number of 0 or more, found {value!r}"
                )
        scores[video] = np.array(row, dtype=np.float64)
    return VideoClassScores(classes, scores, Path(text).name, file_sha256(text))


def write_class_scores(
    path: str | Path, classes: Sequence[str], scores: Mapping[str, np.ndarray]
) -> None:
    """Write a classifier's file, as `read_class_scores`, G-TAD and OpenTAD read it."""
    if any(len(row) != len(classes) for row in scores.values()):
        raise ValueError("every video needs one score for each class")
    results = {video: [float(value) for value in row] for video, row in scores.items()}
    content = {"results": results, "class": list(classes)}
    write_atomically(Path(path), json.dumps(content).encode())
