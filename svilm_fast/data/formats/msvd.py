"""MSVD: about 40 captions a video, published as a pickle, which is read and never loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svilm_fast.data import files
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    FILE_BYTES,
    captioned,
    checked,
    one_file,
    read_ids,
    shown,
)
from svilm_fast.data.formats.pickle_values import plain_value


def read(paths: Sequence[str], notes: Notes, *, captions: str = "several") -> Rows:
    """Read `raw-captions.pkl` and, if given, the ids in `train_list.txt` (val, test).

    The pickle maps each id to captions, each a list of words. It is read opcode by opcode and never
    loaded; one that imports anything is an error.

    captions: `several` writes one row for each video with all captions; `expanded` writes one row
    for each caption.
    """
    source = one_file(paths, (".pkl", ".pickle"), "raw-captions.pkl")
    stored = checked(plain_value(files.read_bytes(source, FILE_BYTES), source), dict, source)
    texts = {}
    for video, given in stored.items():
        label = f"{source}, [{video!r}]"
        if not isinstance(video, str) or not video.strip():
            raise ListFormatError(f"{label}: an id must be a text")
        each = checked(given, list, label)
        texts[video] = _sentences(each) or [
            _sentence(words, f"{label}[{place}]") for place, words in enumerate(each)
        ]
        if not texts[video]:
            raise ListFormatError(f"{label}: no captions")
    wanted = None
    if len(paths) > 1:
        listing = one_file(paths, (".txt",), "test_list.txt")
        wanted = {video: f"{listing}, line {line}" for video, line in read_ids(listing).items()}
    return captioned(texts, wanted, notes, source, captions)


def _sentences(given: list[Any]) -> list[str]:
    """Captions that are lists of words, read fast; none: look at each of them."""
    if set(map(type, given)) != {list}:
        return []
    try:
        found = [" ".join(words).strip() for words in given]
    except TypeError:
        return []
    return found if all(found) else []


def _sentence(words: Any, label: str) -> str:
    if isinstance(words, str):
        words = [words]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ListFormatError(f"{label}: expected a list of words, found {shown(words)}")
    sentence = " ".join(words).strip()
    if not sentence:
        raise ListFormatError(f"{label}: an empty caption")
    return sentence
