"""A selection: which samples of a split training reads. A file of columns that processes share.

`place`, int64 [kept], are places in the table of the samples, ascending. The header says of which
samples (their fingerprint and grain of captions), so that others are refused.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.data.errors import DataError
from svilm_fast.data.index.columns import read_columns, save_columns

SUFFIX = ".selection"
_KIND, _VERSION = "selection", 1
_PIECE = 1 << 20


@dataclass(frozen=True)
class Selection:
    """An open selection: its places are mapped from the file.

    samples, fingerprint: of the whole split. digest: SHA-256 of the places.
    """

    path: str
    places: np.ndarray
    samples: int
    fingerprint: str
    captions: str
    digest: str

    def __reduce__(self) -> Any:
        return open_selection, (os.path.abspath(self.path),)


def write_selection(
    path: Path, places: np.ndarray, *, samples: int, fingerprint: str, captions: str, **facts: Any
) -> None:
    """Write ascending `places` int64 [kept] among `samples`; facts: how they were chosen (JSON)."""
    column = np.asarray(places, "<i8")
    header = {
        "kind": _KIND,
        "version": _VERSION,
        "samples": samples,
        "fingerprint": fingerprint,
        "captions": captions,
        "digest": hashlib.sha256(column.tobytes()).hexdigest(),
        "facts": facts,
    }
    save_columns(path, header, {"place": column})


def open_selection(path: str) -> Selection:
    """Map a selection. Raises DataError for another file and a damaged one."""
    again = "make it again with `svilm data filter`"
    if not os.path.isfile(path):
        raise DataError(f"data.select={path}: there is no such file: {again}")
    header, columns, _ = read_columns(path)
    if header.get("kind") != _KIND or header.get("version") != _VERSION:
        raise DataError(f"data.select={path} is no selection of this version: {again}")
    places = columns.get("place", np.empty(0, "<i8"))
    try:
        found = Selection(
            path,
            places,
            *(header[name] for name in ("samples", "fingerprint", "captions", "digest")),
        )
        ascending = all(
            (np.diff(places[first : first + _PIECE + 1]) > 0).all()
            for first in range(0, len(places), _PIECE)
        )
        inside = len(places) > 0 and places[0] >= 0 and places[-1] < found.samples
        if places.dtype != np.dtype("<i8") or not (ascending and inside):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(f"data.select={path} is damaged or selects nothing: {again}") from None
    return found
