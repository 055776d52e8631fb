"""The fast paths of readers: the same rows, or the same error, as a look at every single record."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svilm_fast.data import lists
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import activitynet, common, kinetics, msrvtt, msvd, qa, reader_of
from svilm_fast.data.json_blocks import decode_lines, no_key_twice
from svilm_fast.data.lists import read_list

PLAIN = json.JSONDecoder()
TEXT = st.sampled_from(["what is it?", "who's  there", "b: c", 'say "x": y', "é", "],[", " cat "])
BLANK = st.sampled_from(["", " \n"])
ODD = st.sampled_from([None, 3, -1, True, 1.5, 10**20, [], {}, ["a"], {"a": 1}, {"b": {"a": 1}}])
NUMBER = st.integers(0, 9)
MANY = settings(max_examples=25, deadline=None)


def no(*_: object) -> None:
    """What a fast path returns where a closer look is needed."""


def never(*_: object) -> bool:
    return False


# Every fast path, and what leaves all the work to the look at single records.
FAST: list[tuple[Any, str, Any]] = [
    (common, "decode_lines", no),
    (lists, "decode_lines", no),
    (common, "no_key_twice", never),
    (common.Texts, "columns", no),
    (qa, "_video_numbers", no),
    (qa, "_named_answers", no),
    (msrvtt, "all_new", never),
    (activitynet, "_plain_segments", lambda *_: []),
    (msvd, "_sentences", lambda *_: []),
    (kinetics, "_are_plain", never),
]


def outcome(name: str, paths: list[str], **options: str) -> Any:
    """Rows and notes of a reader, or its error."""
    notes: Counter[str] = Counter()
    try:
        if name == "list":
            return read_list(*paths)
        return list(reader_of(name)(paths, notes, **options)), notes
    except ListFormatError as error:
        return str(error)


def same(name: str, files: dict[str, str | bytes], **options: str) -> Any:
    """The outcome, which is the same without the fast paths."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for file, content in files.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
            (Path(folder) / file).write_bytes(data)
        given = {key: str(Path(folder) / v) if v in files else v for key, v in options.items()}
        paths = [str(Path(folder) / file) for file in files if file not in options.values()]
        patch.setattr(common, "_BLOCK", 4)
        fast = outcome(name, paths, **given)
        for owner, attribute, instead in FAST:
            patch.setattr(owner, attribute, instead)
        slow = outcome(name, paths, **given)
        assert fast == slow
        return fast


@st.composite
def records(draw: st.DrawFn, **fields: st.SearchStrategy) -> list[Any]:
    """Records with these fields; in half of the draws one is damaged."""
    made = draw(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=12))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(made) - 1))
        name = draw(st.sampled_from(list(fields)))
        kind = draw(st.sampled_from(["missing", "odd", "blank", "no record"]))
        if kind == "missing":
            del made[at][name]
        elif kind == "no record":
            made[at] = draw(ODD)
        else:
            made[at][name] = draw(ODD if kind == "odd" else BLANK)
    return made


@st.composite
def written(draw: st.DrawFn, text: str) -> str:
    """JSON or lines of it, sometimes with a byte or a key too many."""
    kind = draw(st.sampled_from(["whole", "whole", "cut", "mark", "twice", "nan", "colon"]))
    at = draw(st.integers(0, len(text)))
    if kind == "cut":
        return text[:at]
    if kind == "mark":
        return text[:at] + draw(st.sampled_from(list('{}[],:"\n\\ 1\r'))) + text[at:]
    if kind == "twice" and (keys := list(re.finditer(r'"(\w+)": ', text))):
        key = draw(st.sampled_from(keys))
        return text[: key.start()] + f'"{key[1]}": 0, ' + text[key.start() :]
    changes = {"nan": (": ", ": NaN, "), "colon": (":", "::")}
    return text.replace(*changes[kind], 1) if kind in changes else text


def lines(made: list[Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in made)


QUESTIONS = {"question": TEXT, "answer": TEXT}


@MANY
@given(st.data())
def test_json_lines_of_questions(data: st.DataObject) -> None:
    video = st.sampled_from(["vid1.mp4", " vid2", "vid3"])
    made = data.draw(records(**QUESTIONS, answer_type=TEXT, video_id=video))
    text = data.draw(written(lines(made)))
    same("qa-clipbert", {"a.jsonl": text})
    same("qa-alpro-msvd", {"a.jsonl": text, "map.txt": "one vid1\ntwo vid2\n"})


@MANY
@given(st.data())
def test_original_questions(data: st.DataObject) -> None:
    made = data.draw(records(**QUESTIONS, video_id=st.integers(-1, 30)))
    for place, record in enumerate(made):
        if type(record) is dict and data.draw(st.integers(0, 9)):
            record["id"] = data.draw(st.sampled_from([place] * 9 + [0]))
    same("qa-original", {"a.json": data.draw(written(json.dumps(made, indent=1)))})


@MANY
@given(st.data())
def test_questions_with_classes(data: st.DataObject) -> None:
    made = data.draw(
        records(question=TEXT, video=TEXT, answer=st.sampled_from([0, 1, 2] * 5 + [-1, 3]))
    )
    files = {"a.json": data.draw(written(json.dumps({"train": made}))), "l.json": '["a", "b", "c"]'}
    same("qa-violet", files, split="train", labels="l.json")


@MANY
@given(st.data())
def test_lists_of_json_lines(data: st.DataObject) -> None:
    made = data.draw(records(video=TEXT, Caption=TEXT))
    same("list", {"a.jsonl": data.draw(written(lines(made)))})


@MANY
@given(st.data())
def test_moments_and_captions(data: st.DataObject) -> None:
    made = data.draw(records(video=TEXT, description=TEXT))
    same("didemo", {"a.json": data.draw(written(json.dumps(made)))})
    made = data.draw(records(video_id=TEXT, caption=TEXT))
    known = [r["video_id"] for r in made if type(r) is dict and type(r.get("video_id")) is str]
    videos = [{"video_id": name} for name in dict.fromkeys(known)]
    document = json.dumps({"videos": videos, "sentences": made})
    same("msrvtt", {"a.json": data.draw(written(document))})


@MANY
@given(st.lists(st.tuples(NUMBER, TEXT | BLANK), min_size=1, max_size=12))
def test_the_test_list_of_msrvtt(rows: list[tuple[int, str]]) -> None:
    cells = (f"ret{n},m,{n},{json.dumps(text)}\n" for n, (_, text) in enumerate(rows))
    same("msrvtt", {"a.csv": "key,vid_key,video_id,sentence\n" + "".join(cells)})
    cells = (f"{text.strip()},m,{n}\n" for n, text in rows)
    same("msrvtt", {"a.csv": "sentence,key,video_id\n" + "".join(cells)})


@MANY
@given(st.data())
def test_annotated_segments(data: st.DataObject) -> None:
    time = st.sampled_from([0, 1, 2.5, 3, 9])
    made = data.draw(records(segment=st.tuples(time, time).map(sorted), label=TEXT))
    video = {"subset": "training", "duration": 5, "annotations": made}
    document = data.draw(written(json.dumps({"database": {"a": video, "b:": video}})))
    for bad in ("error", "keep", "drop"):
        same("activitynet", {"a.json": document}, bad_segments=bad)


@MANY
@given(st.lists(st.tuples(NUMBER, st.sampled_from(["1", "2", "x", ""]), TEXT | BLANK), min_size=1))
def test_tables_of_kinetics(rows: list[tuple[int, str, str]]) -> None:
    head = "label,youtube_id,time_start,time_end\n"
    cells = (f"{json.dumps(t.strip())},-a_0000000{n},{s},3\n" for n, s, t in rows)
    same("kinetics", {"a.csv": head + "".join(cells)})
    cells = (f"run{n % 3},-a_000{n:05},1,3\n" for n, *_ in rows * 3)
    same("kinetics", {"a.csv": head + "".join(cells)})


@MANY
@given(st.lists(st.lists(TEXT | BLANK | ODD | st.lists(TEXT | ODD, max_size=3)), max_size=4))
def test_captions_in_words(captions: list[Any]) -> None:
    import pickle

    kept = {f"vid{n}": each for n, each in enumerate(captions)}
    same("msvd", {"a.pkl": pickle.dumps(kept, protocol=2)})


@pytest.mark.parametrize("bad", range(4, 12))
def test_one_bad_record_among_good_ones_is_an_error(bad: int) -> None:
    """No block of records is taken as a whole where one of them is wrong."""

    def lasting(at: int) -> dict[str, Any]:
        return {"segment": [0, 9 if at == bad else 3], "label": "run"}

    def asked(at: int) -> dict[str, Any]:
        return {"question": "what?", "video": "v", "answer": -1 if at == bad else 1}

    every = range(12)
    listed = [f"v{at - (at == bad)},a dog\n" for at in every]
    assert "'v" in same("msrvtt", {"a.csv": "video_id,sentence\n" + "".join(listed)})
    video = {"subset": "training", "duration": 5, "annotations": [*map(lasting, every)]}
    document = json.dumps({"database": {"a": video}})
    assert f"[{bad}]" in same("activitynet", {"a.json": document}, bad_segments="error")
    files = {"a.json": json.dumps({"train": [*map(asked, every)]}), "l.json": '["a", "b"]'}
    assert f"train[{bad}]" in same("qa-violet", files, split="train", labels="l.json")
    rows = [f"run,{'no id' if at == bad else f'-a_000{at:05}'},1,3\n" for at in every]
    head = "label,youtube_id,time_start,time_end\n"
    assert f"line {bad + 2}" in same("kinetics", {"a.csv": head + "".join(rows)})


@pytest.mark.parametrize("empty", [[[]], [["", ""]], [["a"], [" "]]])
def test_a_caption_without_words_is_an_error(empty: list[list[str]]) -> None:
    import pickle

    assert "['b']" in same("msvd", {"a.pkl": pickle.dumps({"a": [["x"]], "b": empty}, protocol=2)})


@given(st.recursive(NUMBER | TEXT, lambda v: st.lists(v) | st.dictionaries(TEXT, v), max_leaves=20))
def test_keys_are_counted_at_every_depth(value: Any) -> None:
    text = json.dumps(value)
    looked_at = '"' in text and any(f'{quote}"' in text for quote in ("\\", ":"))
    assert no_key_twice(text, value) or looked_at
    twice = f'[{text}, {{"k": 0, "k": {text}}}]'
    assert not no_key_twice(twice, json.loads(twice))


@pytest.mark.parametrize(
    "given_lines",
    [
        ['{"a": 1', '"b": 2}', '{"c": 3}, {"d": 4}'],
        ['{"a": [{"b": 1}', '{"c": 2}]}', "{}, {}"],
        ['{"a": "b', 'c"}', "{}, {}"],
        ['{"a": [[1', "2]]}", "{}],[{}"],
        ['{"a": [1', "2]}", "{}, 1604661907, {}"],
        ['{"a": [1', "2]}", "{}, 1.604661907e9, {}"],
    ],
)
def test_no_object_goes_over_the_end_of_a_line(given_lines: list[str]) -> None:
    assert decode_lines(given_lines, PLAIN) is None
    message = same("qa-clipbert", {"a.jsonl": "\n".join(given_lines)})
    assert "line 1: not valid JSON" in message
    assert "line 1: not valid JSON" in same("list", {"a.jsonl": "\n".join(given_lines)})
    assert decode_lines(['{"a": 1}', ' {"b": {"c": [2]}}\r'], PLAIN) == [
        {"a": 1},
        {"b": {"c": [2]}},
    ]
