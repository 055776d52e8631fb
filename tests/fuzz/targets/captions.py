"""Sample descriptions: captions, nouns and segments; cleaning, the noun tagger, and lists."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from svilm_fast.data import text
from svilm_fast.data.captions import pick_captions
from svilm_fast.data.lists import read_list
from svilm_fast.data.nouns import TextBlobNouns, nouns_from_json, nouns_to_json
from svilm_fast.data.segments import segment_of_json

from ..engine import Target
from ..texts import JSON, TEXTS, damaged, encodable

_NOUNS = st.one_of(
    JSON,
    st.lists(st.fixed_dictionaries({"text": TEXTS, "span": st.lists(st.integers(), max_size=3)})),
)
_RECORDS = st.one_of(
    st.fixed_dictionaries(
        {"caption": st.one_of(TEXTS, st.lists(st.one_of(TEXTS, JSON), max_size=3))},
        optional={"nouns": _NOUNS},
    ),
    st.fixed_dictionaries(
        {"captions": st.one_of(JSON, st.dictionaries(st.sampled_from(["fine", "fused"]), TEXTS))},
        optional={"nouns": _NOUNS, "caption": JSON},
    ),
)
_TIMES = st.one_of(st.just(10**400), st.booleans(), st.integers(), st.floats(), JSON)
_SEGMENTS = st.fixed_dictionaries({"segment": st.one_of(st.tuples(_TIMES, _TIMES).map(list), JSON)})
CASES = st.one_of(TEXTS, _RECORDS, _SEGMENTS)


@functools.cache
def _tagger() -> TextBlobNouns:
    tagger = TextBlobNouns()
    tagger("two small dogs chase a red blorfinator")  # reads the lexicons and the model
    return tagger


def _check_clean(cleaned: str) -> None:
    assert encodable(cleaned), "it cannot be written as UTF-8"
    assert cleaned == cleaned.strip(), "white space around it"
    controls = [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\t\n\r"]
    assert not controls, f"control characters {controls!r}"
    if "&" not in cleaned:
        assert text.clean(cleaned) == cleaned, "cleaning is not idempotent"


def _check_segment(record: dict[str, Any]) -> None:
    segment = segment_of_json(record, "x")
    if segment is not None:
        assert not any(isinstance(item, bool) for item in record["segment"]), "a truth as a time"
        assert 0 <= segment[0] < segment[1], "the segment has no duration"


def check(case: Any, folder: Path) -> None:
    if isinstance(case, str):
        caption = text.clean(case)
        _check_clean(caption)
        nouns = _tagger()(caption)
        for noun in nouns:
            assert 0 <= noun.start < noun.end <= len(caption), "a span outside the caption"
            assert noun.text == noun.text.strip() != "", "a noun without text"
            first = noun.text.split()[0]
            if len(noun.text.split()) > 1:
                shown = caption[noun.start : noun.end].lower()
                assert shown.startswith(first), "a span of another word"
        assert len({noun.text for noun in nouns}) == len(nouns), "a duplicate noun"
        assert nouns_from_json(nouns_to_json(nouns), "x") == nouns, "nouns change when stored"
        return
    if "segment" in case:
        _check_segment(case)
        return
    found = pick_captions(case, "fused", "x")
    assert found.texts
    assert len(found.texts) == len(found.nouns)
    for caption in found.texts:
        _check_clean(caption)
        assert text.is_visible(caption), "an invisible caption"
    for nouns in found.nouns:
        assert nouns is None or all(isinstance(noun, str) and noun.strip() for noun in nouns)


_CSV = b'video,caption\na.mp4,"a dog, running"\nb.mp4,a ""cat""\nc.mp4,plain\n'
_JSONL = b'{"video": "a.mp4", "caption": "a dog"}\n{"video": 7, "caption": null, "start": 1.5}\n'


@st.composite
def _lists(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from([".csv", ".tsv", ".jsonl"]))
    data = _JSONL if suffix == ".jsonl" else _CSV
    if suffix == ".tsv":
        data = data.replace(b",", b"\t")
    if draw(st.booleans()):
        rows = draw(st.lists(TEXTS, max_size=4))
        data += "\n".join(rows).encode("utf-8", "surrogatepass")
    return suffix, draw(damaged(data))


def check_list(case: tuple[str, bytes], folder: Path) -> None:
    suffix, data = case
    path = folder / f"list{suffix}"
    path.write_bytes(data)
    rows = read_list(str(path))
    assert rows
    for row in rows:
        assert row.video.strip() == row.video != ""
        assert row.caption is None or isinstance(row.caption, str)
    assert [row.line for row in rows] == sorted({row.line for row in rows}), "lines out of order"


TARGET = Target("captions", CASES, check, short=80, prepare=_tagger)
LISTS = Target("lists", _lists(), check_list, short=80)
