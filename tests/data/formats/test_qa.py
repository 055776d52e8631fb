"""The five kinds of files of MSRVTT-QA and MSVD-QA: rows by video, and errors with their place."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from svilm_fast.cli import app
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import reader_of
from svilm_fast.train.run_app import run_app

ORIGINAL = [
    {"id": 0, "video_id": 7, "question": "what is it?", "answer": "cat", "category_id": 1},
    {"id": 1, "video_id": 2, "question": "who runs?", "answer": "man", "category_id": 1},
    {"id": 2, "video_id": 7, "question": "is it red?", "answer": "yes", "category_id": 1},
]
BY_VIDEO = {
    "video7": [("what is it?", "cat", "what"), ("is it red?", "yes", "other")],
    "video2": [("who runs?", "man", "who")],
}
MAPPING = "-4wsuPCjDBc_5_15 vid7\nmv89psg6zh4_33_46 vid2\n"


@pytest.fixture
def write(tmp_path):
    def make(name: str, content) -> str:
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def read(name: str, *paths: str, **options: str) -> tuple[dict, Counter]:
    notes: Counter[str] = Counter()
    rows = list(reader_of(name)(paths, notes, **options))
    assert len({row["video"] for row in rows}) == len(rows)
    pairs = {
        row["video"]: [(q["question"], q["answer"], q["type"]) for q in row["questions"]]
        for row in rows
    }
    return pairs, notes


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def clipbert(video: str = "video7", **changes) -> dict:
    record = {"question": "what?", "answer": "cat", "video_id": video, "answer_type": "what"}
    return {key: value for key, value in (record | changes).items() if value is not None}


def test_the_original_files(write) -> None:
    path = write("val_qa.json", ORIGINAL)
    assert read("qa-original", path)[0] == BY_VIDEO
    assert list(read("qa-original", path, prefix="vid")[0]) == ["vid7", "vid2"]
    named, _ = read("qa-original", path, write("youtube_mapping.txt", MAPPING), prefix="vid")
    assert list(named) == ["-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46"]


def test_clipbert_and_alpro(write) -> None:
    path = write("test.jsonl", lines(clipbert(), clipbert("vid2.avi"), clipbert(answer="dog")))
    found, _ = read("qa-clipbert", path)
    assert found == {
        "video7": [("what?", "cat", "what"), ("what?", "dog", "what")],
        "vid2": [("what?", "cat", "what")],
    }
    path = write("msvd.jsonl", lines(clipbert("vid2.avi"), clipbert("vid7.avi")))
    found, _ = read("qa-alpro-msvd", path, write("map.txt", MAPPING.replace("\n", "\r\n")))
    assert list(found) == ["mv89psg6zh4_33_46", "-4wsuPCjDBc_5_15"]


def test_just_ask(write) -> None:
    table = (
        "\ufeffvideo_id,question,answer,type\r\n"
        '7,"what, if any, is it?",cat,0\r\n'
        "video2,who runs?,man,who\r\n"
    )
    found, notes = read("qa-just-ask", write("test.csv", table))
    assert found == {
        "video7": [("what, if any, is it?", "cat", "what")],
        "video2": [("who runs?", "man", "who")],
    }
    assert list(notes.values()) == [1]


def test_violet(write) -> None:
    records = [
        {"video": "video7", "question": "what is it?", "answer": 1},
        {"video": "video2", "question": "who runs?", "answer": 0},
    ]
    path = write("qa.json", {"train": records, "test": []})
    for labels in (["man", "cat"], {"cat": 1, "man": 0}):
        options = {"split": "train", "labels": write("labels.json", labels)}
        found, _ = read("qa-violet", path, **options)
        assert found == {
            "video7": [("what is it?", "cat", "what")],
            "video2": [("who runs?", "man", "who")],
        }


def test_repeated_questions_are_kept_and_noted(write) -> None:
    found, notes = read("qa-clipbert", write("a.jsonl", lines(clipbert(), clipbert())))
    assert len(found["video7"]) == 2
    assert notes["questions that repeat with the same answer, kept"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa-original", [], r"a\.json: no questions"),
        ("qa-original", {"a": 1}, r"a\.json: expected a list"),
        ("qa-original", [ORIGINAL[0], ORIGINAL[0]], r"\[1\], field 'id': 0 repeats"),
        ("qa-original", [ORIGINAL[0] | {"video_id": "7"}], r"\[0\], field 'video_id': .*number"),
        ("qa-original", [ORIGINAL[0] | {"answer": " "}], r"\[0\], field 'answer': is empty"),
        ("qa-original", '[{"id": 1, "id": 2}]', r"line 1: the key 'id' appears twice"),
        ("qa-original", '[\n{"id": NaN}]', r"line 2: NaN is not a JSON number"),
        ("qa-clipbert", lines(clipbert(answer_type=None)), r"line 1: no field 'answer_type'"),
        ("qa-clipbert", lines(clipbert(), clipbert(answer=3)), r"line 2, field 'answer': .*text"),
        ("qa-clipbert", "\n{]\n", r"a\.json, line 2: not valid JSON"),
        ("qa-violet", {"train": []}, r"option split=: give one of train, val, test"),
    ],
)
def test_a_broken_file_is_named_with_its_place(write, name, content, message) -> None:
    with pytest.raises(ListFormatError, match=message):
        read(name, write("a.json", content))


def test_broken_tables_mappings_and_labels(write) -> None:
    with pytest.raises(ListFormatError, match=r"line 1: no column 'answer'"):
        read("qa-just-ask", write("a.csv", "video_id,question\n1,what?\n"))
    with pytest.raises(ListFormatError, match=r"line 3, field 'question': is empty"):
        read("qa-just-ask", write("b.csv", "video_id,question,answer\n1,what?,cat\n2,,cat\n"))
    tabs = write("c.csv", "video_id\tquestion\tanswer\n1\twhat?\tcat\n")
    assert read("qa-just-ask", tabs)[0] == {"video1": [("what?", "cat", "what")]}
    msvd = write("m.jsonl", lines(clipbert("vid9.avi")))
    with pytest.raises(ListFormatError, match=r"line 1, field 'video_id': 'vid9' is not in the"):
        read("qa-alpro-msvd", msvd, write("map.txt", MAPPING))
    with pytest.raises(ListFormatError, match=r"map2\.txt, line 1: expected a video's name and"):
        read("qa-alpro-msvd", msvd, write("map2.txt", "vid7 abc\n"))
    with pytest.raises(ListFormatError, match=r"map3\.txt, line 2: 'vid7' repeats"):
        read("qa-alpro-msvd", msvd, write("map3.txt", "abc vid7\ndef vid7\n"))
    with pytest.raises(ListFormatError, match=r"expected one \.txt file"):
        read("qa-alpro-msvd", msvd)
    violet = write("v.json", {"test": [{"video": "v", "question": "what?", "answer": 2}]})
    with pytest.raises(ListFormatError, match=r"give the file of their names"):
        read("qa-violet", violet, split="test")
    with pytest.raises(ListFormatError, match=r"test\[0\], field 'answer': class 2 is not among"):
        read("qa-violet", violet, split="test", labels=write("l.json", ["a", "b"]))
    with pytest.raises(ListFormatError, match=r"no field 'val'"):
        read("qa-violet", violet, split="val", labels=write("l2.json", ["a", "b"]))
    for number, labels in enumerate(({"a": 0, "b": 0}, {"a": 1}, ["a", 1])):
        with pytest.raises(ListFormatError, match=rf"l3{number}\.json"):
            read("qa-violet", violet, split="test", labels=write(f"l3{number}.json", labels))


def test_converted_and_printed(write, tmp_path, capsys) -> None:
    out = tmp_path / "list.jsonl"
    arguments = ("data", "convert", "qa-original", write("val_qa.json", ORIGINAL), "--out", out)
    assert run_app(app, tuple(map(str, arguments))) == 0
    assert "2 rows, 2 videos, 3 questions" in capsys.readouterr().out
