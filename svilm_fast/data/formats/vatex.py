"""VATEX: ten English and ten Chinese captions of a ten-second clip of a YouTube video."""

from __future__ import annotations

import re
from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    captioned,
    checked,
    choice,
    field,
    once,
    one_file,
    read_ids,
    read_json,
    shown,
)

# Eleven characters of YouTube, which may begin with "-" and hold "_", then seconds.
_ID = re.compile(r"([\w-]{11})_(\d+)_(\d+)", re.ASCII)


def read(
    paths: Sequence[str],
    notes: Notes,
    *,
    captions: str = "several",
    language: str = "en",
    videos: str = "clips",
) -> Rows:
    """Read `vatex_training_v1.0.json` (videoID, enCap, chCap) and, if given, a .txt list of ids.

    captions: `several` writes one row for each clip with all captions; `expanded` writes one row
    for each caption. language: `en` or `zh`.

    videos: `clips` are files of ten seconds named after the whole id (`<youtube>_<start>_<end>`);
    `whole` are videos named after the eleven characters of YouTube, and rows have `start` and
    `end`.
    """
    key = {"en": "enCap", "zh": "chCap"}[choice(language, ("en", "zh"), "language")]
    choice(videos, ("clips", "whole"), "videos")
    source = one_file(paths, (".json",), "vatex_validation_v1.0.json")
    texts: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for place, clip in enumerate(checked(read_json(source), list, source)):
        label = f"{source}, [{place}]"
        name = field(checked(clip, dict, label), "videoID", str, label)
        parts = _ID.fullmatch(name)
        if parts is None or int(parts[2]) >= int(parts[3]):
            raise ListFormatError(
                f"{label}, field 'videoID': expected eleven characters, _start and _end with start "
                f"before end, found {name!r}"
            )
        once(seen, name, place, f"{label}, field 'videoID'")
        texts[name] = given = field(clip, key, list, label)
        if all(type(text) is str and text.strip() for text in given) and given:
            continue
        for number, text in enumerate(given):
            if not isinstance(text, str) or not text.strip():
                raise ListFormatError(
                    f"{label}, field {key!r}[{number}]: expected a text, found {shown(text)}"
                )
        raise ListFormatError(f"{label}, field {key!r}: is empty")
    wanted = None
    if len(paths) > 1:
        listing = one_file(paths, (".txt",), "ids of the split")
        wanted = {name: f"{listing}, line {line}" for name, line in read_ids(listing).items()}
    for row in captioned(texts, wanted, notes, source, captions):
        if videos == "whole" and (parts := _ID.fullmatch(row["video"])):
            row |= {"video": parts[1], "start": float(parts[2]), "end": float(parts[3])}
        yield row
