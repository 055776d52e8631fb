"""Nouns of the captions of an index that came without any."""

from __future__ import annotations

import itertools

import numpy as np

from svilm_fast.data.config import NounsConfig
from svilm_fast.data.index.columns import Columns, bytes_at, text_arrays, texts_of
from svilm_fast.data.index.schema import CAPTIONED, EVERY_CAPTIONED, GRAINS, starts_of
from svilm_fast.data.nouns import NounExtractor, in_other_language


def find_nouns(columns: Columns, config: NounsConfig, extract: NounExtractor) -> Columns:
    """The columns with nouns for every caption, and counts [grain] of captions without nouns.

    Captions that brought nouns keep them.
    """
    missing = columns.get("nouns_missing", np.zeros(0, "u1")).nonzero()[0]
    if len(missing):
        columns = _with_extracted(columns, missing, extract)
    counts = {name: np.zeros(len(GRAINS), "<i8") for name in ("without_nouns", "other_language")}
    empty = np.flatnonzero(np.diff(columns["first_noun"]) == 0)
    masks = caption_masks(columns)[empty]
    for caption, mask in zip(empty.tolist(), masks.tolist()):
        bits = np.array([mask >> place & 1 for place in range(len(GRAINS))])
        counts["without_nouns"] += bits
        if in_other_language(config, bytes_at(columns, "caption", caption).decode()):
            counts["other_language"] += bits
    kept = {name: column for name, column in columns.items() if name != "nouns_missing"}
    return kept | counts


def caption_masks(columns: Columns) -> np.ndarray:
    """For every caption, with which grains it is read: uint8 [c], bits as in `grains`."""
    of_sample = np.repeat(columns["grains"], np.diff(columns["first_caption"]))
    grain = columns["caption_grain"]
    own = np.array([EVERY_CAPTIONED, *(1 << place for place in range(len(CAPTIONED)))], "u1")
    return own[grain] & of_sample


def _with_extracted(columns: Columns, missing: np.ndarray, extract: NounExtractor) -> Columns:
    words = list(texts_of(columns, "word"))
    number = {word: row for row, word in enumerate(words)}
    first, stored = columns["first_noun"].tolist(), columns["noun"].tolist()
    found = [stored[start:stop] for start, stop in itertools.pairwise(first)]
    known: dict[bytes, list[int]] = {}
    for row in missing.tolist():
        caption = bytes_at(columns, "caption", row)
        if caption not in known:
            names = [noun.text.encode() for noun in extract(caption.decode())]
            known[caption] = [number.setdefault(name, len(number)) for name in names]
        found[row] = known[caption]
    starts, blob = text_arrays(list(number))
    return columns | {
        "first_noun": starts_of([len(each) for each in found]),
        "noun": np.array([noun for each in found for noun in each], "<u4"),
        "word_start": starts,
        "word_text": blob,
    }
