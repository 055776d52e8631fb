"""LSMDC: tab-separated lists of clips without a header."""

from __future__ import annotations

from collections.abc import Sequence

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import captioned, read_cells

_COLUMNS = ("clip id", "start aligned", "end aligned", "start extracted", "end extracted")


def read(paths: Sequence[str], notes: Notes, *, captions: str = "several") -> Rows:
    """Read one list: `LSMDC16_challenge_1000_publictect.csv`, or those of training or validation.

    The file is separated by tabs and has six columns: clip id, four times, sentence. Quotes are
    part of the sentence. The sentences of a clip id that repeats become captions of one video.

    captions: `several` or `expanded`, as for msrvtt.
    """
    if len(paths) != 1:
        raise ListFormatError(f"expected one list, got {len(paths)}: {', '.join(paths)}")
    texts: dict[str, str | list[str]] = {}
    for line, cells in read_cells(paths[0], len(_COLUMNS) + 1, "\t"):
        video, sentence = cells[0].strip(), cells[-1].strip()
        if not video or not sentence:
            name = "sentence" if video else _COLUMNS[0]
            raise ListFormatError(f"{paths[0]}, line {line}, field {name!r}: is empty")
        if video in texts:
            notes["lines that repeat a clip id; their sentences belong to one video"] += 1
            earlier = texts[video]
            several = earlier if isinstance(earlier, list) else [earlier]
            texts[video] = [*several, sentence]
        else:
            texts[video] = sentence
    return captioned(texts, None, notes, paths[0], captions)
