"""Question answering on MSR-VTT and MSVD: the five kinds of files that are in use.

Every reader gives one row for each video, in the order in which videos first appear, with all its
questions: `questions: [{question, answer, type}]`. Answers outside a vocabulary are kept.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    Texts,
    checked,
    choice,
    field,
    one_file,
    read_json,
    read_json_lines,
    read_lines,
    read_rows,
    shown,
    without_extension,
)

TYPES = ("what", "who", "how", "where", "when")
OTHER = "other"
_LINE = "line {}"
NUMBERED = re.compile(r"vid\d+")
SPLITS = ("train", "val", "test")

# Video, question, answer, type (None: by the question's first word), and its number in the file.
Asked = tuple[str, str, str, str | None, int]


def read_original(paths: Sequence[str], notes: Notes, *, prefix: str = "video") -> Rows:
    """Read {train,val,test}_qa.json of the authors: id, video_id (a number), question, answer.

    Video 7 becomes `video7`, as in MSR-VTT. prefix: what is put before the number; `vid` for MSVD.
    A .txt file beside it (MSVD's youtube_mapping.txt, lines of a name and vid<N>) gives the names.
    """
    document = one_file(paths, (".json",), "train_qa.json, val_qa.json or test_qa.json")
    return _grouped(_original(document, prefix), notes, _names(paths), document, "[{}]")


def read_clipbert(paths: Sequence[str], notes: Notes) -> Rows:
    """Read a JSONL file of ClipBERT or ALPRO: question, answer, video_id, answer_type."""
    document = one_file(paths, (".jsonl", ".json"), "ClipBERT's or ALPRO's questions")
    return _grouped(_lines(document), notes, _names(paths), document, _LINE)


def read_alpro_msvd(paths: Sequence[str], notes: Notes) -> Rows:
    """Read ALPRO's JSONL file of MSVD and youtube_mapping.txt, which maps vid<N> to file names."""
    document = one_file(paths, (".jsonl", ".json"), "ALPRO's questions about MSVD")
    names = _names([one_file(paths, (".txt",), "youtube_mapping.txt")])
    return _grouped(_lines(document), notes, names, document, _LINE)


def read_just_ask(paths: Sequence[str], notes: Notes, *, prefix: str = "video") -> Rows:
    """Read a CSV file of Just-Ask or FrozenBiLM: video_id, question, answer, type.

    A video_id that is a number gets the prefix. A type that is a number is replaced by the first
    word of the question.
    """
    table = one_file(paths, (".csv",), "Just-Ask's or FrozenBiLM's questions")
    return _grouped(_cells(table, prefix, notes), notes, _names(paths), table, _LINE)


def read_violet(paths: Sequence[str], notes: Notes, *, split: str = "", labels: str = "") -> Rows:
    """Read one split of VIOLET's JSON file: {train: [{video, question, answer: class}]}.

    split: train, val or test. labels: the JSON file of the classes, a list of answers or
    {answer: class}; it is also a vocabulary for task.answers_file.
    """
    document = one_file(paths, (".json",), "VIOLET's questions")
    choice(split, SPLITS, "split")
    if not labels:
        raise ListFormatError(
            f"{document}: answers are classes: give the file of their names, --option labels=FILE"
        )
    rows = _classes(document, split, _labels(labels))
    return _grouped(rows, notes, {}, document, f"{split}[{{}}]")


def _original(path: str, prefix: str) -> Iterator[Asked]:
    seen: dict[str, int] = {}
    for place, entry in enumerate(checked(read_json(path, flat=True), list, path)):
        label = f"{path}, [{place}]"
        record = checked(entry, dict, label)
        number = field(record, "video_id", int, label)
        if number < 0:
            raise ListFormatError(f"{label}, field 'video_id': expected a number from 0 on")
        if "id" in record:
            _once(seen, str(field(record, "id", int, label)), place, f"{label}, field 'id'")
        yield (f"{prefix}{number}", *_pair(record, label), None, place)


def _lines(path: str) -> Iterator[Asked]:
    texts_of = Texts(path, "answer_type", "video_id", "question", "answer", place=_LINE)
    name_of = functools.cache(without_extension)
    for line, record in read_json_lines(path):
        kind, video, question, answer = texts_of(record, line)
        yield name_of(video.strip()), question.strip(), answer, kind, line


def _cells(path: str, prefix: str, notes: Notes) -> Iterator[Asked]:
    for line, row in read_rows(path, ("video_id", "question", "answer")):
        label = f"{path}, line {line}"
        video = without_extension(field(row, "video_id", str, label).strip())
        video = f"{prefix}{video}" if video.isdecimal() else video
        kind: str | None = row.get("type", "").strip()
        if not kind or kind.isdecimal():
            notes["questions with a type that is no word: their first word is the type"] += 1
            kind = None
        yield (video, *_pair(row, label), kind, line)


def _classes(path: str, split: str, answers: Sequence[str]) -> Iterator[Asked]:
    document = checked(read_json(path, flat=True), dict, path)
    for place, entry in enumerate(field(document, split, list, path)):
        label = f"{path}, {split}[{place}]"
        record = checked(entry, dict, label)
        number = field(record, "answer", int, label)
        if not 0 <= number < len(answers):
            raise ListFormatError(
                f"{label}, field 'answer': class {number} is not among the {len(answers)} labels"
            )
        video = without_extension(field(record, "video", str, label).strip())
        yield (video, field(record, "question", str, label), answers[number], None, place)


def _once(seen: dict[str, int], value: str, number: int, label: str) -> None:
    if seen.setdefault(value, number) != number:
        raise ListFormatError(f"{label}: {value!r} repeats that of number {seen[value]}")


def _pair(record: dict[str, Any], label: str) -> tuple[str, str]:
    return field(record, "question", str, label).strip(), field(record, "answer", str, label)


def _labels(path: str) -> list[str]:
    """The answers by class."""
    found = read_json(path)
    if isinstance(found, list):
        return [checked(each, str, f"{path}, [{place}]") for place, each in enumerate(found)]
    by_class: dict[int, str] = {}
    for answer, number in checked(found, dict, path).items():
        if checked(number, int, f"{path}, {shown(answer)}") in by_class:
            raise ListFormatError(f"{path}, {shown(answer)}: class {number} is taken")
        by_class[number] = answer
    if sorted(by_class) != list(range(len(by_class))):
        raise ListFormatError(f"{path}: the classes are not 0 to {len(by_class) - 1}")
    return [by_class[number] for number in range(len(by_class))]


def _names(paths: Iterable[str]) -> dict[str, str]:
    """The file name of each vid<N>, from a mapping among `paths`; empty without one."""
    given = [path for path in paths if path.lower().endswith(".txt")]
    if not given:
        return {}
    path = one_file(given, (".txt",), "youtube_mapping.txt")
    names: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, text in read_lines(path):
        label = f"{path}, line {line}"
        cells = text.split()
        if len(cells) != 2 or not NUMBERED.fullmatch(cells[1]):
            raise ListFormatError(
                f"{label}: expected a video's name and vid<N>, found {text!r:.60}"
            )
        _once(lines, cells[1], line, label)
        names[cells[1]] = without_extension(cells[0])
    if not names:
        raise ListFormatError(f"{path}: no names")
    return names


def _grouped(
    every: Iterable[Asked], notes: Notes, names: dict[str, str], path: str, place: str
) -> Iterator[dict[str, Any]]:
    """One row a video; place: how messages name a question, with `{}` for its number.

    Raises ListFormatError for an unmapped vid<N>, or without questions.
    """
    videos: dict[str, list[dict[str, str]]] = {}
    pairs: set[tuple[str, str, str]] = set()
    named: Callable[[str], str | None] = names.get if names else lambda video: video
    total = 0
    for video, question, answer, kind, number in every:
        found = named(video)
        if found is None:
            label = f"{path}, {place.format(number)}"
            raise ListFormatError(f"{label}, field 'video_id': {video!r} is not in the mapping")
        total += 1
        pairs.add((found, question, answer))
        asked = videos.get(found)
        if asked is None:
            asked = videos[found] = []
        asked.append({"question": question, "answer": answer, "type": kind or _type_of(question)})
    if len(pairs) < total:
        notes["questions that repeat with the same answer, kept"] += total - len(pairs)
    if not videos:
        raise ListFormatError(f"{path}: no questions")
    for video, asked in videos.items():
        yield {"video": video, "questions": asked}


def _type_of(question: str) -> str:
    """The first word of a question, if it is one of TYPES."""
    first = re.match(r"[a-z]+", question.lower())
    return first[0] if first and first[0] in TYPES else OTHER
