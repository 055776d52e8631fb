"""Question answering on MSR-VTT and MSVD: the five kinds of files that are in use.

Every reader gives one row for each video, in the order in which videos first appear, with all its
questions: `questions: [{question, answer, type}]`. Answers outside a vocabulary are kept.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import Notes, Rows
from svilm_fast.data.formats.common import (
    Texts,
    all_new,
    blocks_of,
    checked,
    choice,
    field,
    once,
    one_file,
    read_columns,
    read_json,
    read_json_lines,
    read_lines,
    shown,
    without_extension,
)

TYPES = ("what", "who", "how", "where", "when")
OTHER = "other"
_LINE = "line {}"
NUMBERED = re.compile(r"vid\d+")
SPLITS = ("train", "val", "test")


class Asked(NamedTuple):
    """Questions, one or many: their numbers in the file, and a list of each part of them.

    kinds: types; None, for one or for all: by the question's first word.
    """

    numbers: Sequence[int]
    videos: Sequence[str]
    questions: Sequence[str]
    answers: Sequence[str]
    kinds: Sequence[str | None] | None = None


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
    seen: dict[int, int] = {}
    texts_of = Texts(path, "question", "answer")
    name_of = functools.cache(lambda number: f"{prefix}{number}")
    for places, entries in blocks_of(enumerate(checked(read_json(path), list, path))):
        columns = texts_of.columns(entries)
        found = None if columns is None else _video_numbers(entries, places, seen)
        if columns is not None and found is not None:
            questions, answers = columns
            yield Asked(places, [*map(name_of, found)], [*map(str.strip, questions)], answers)
            continue
        for place, entry in zip(places, entries):
            label = f"{path}, [{place}]"
            record = checked(entry, dict, label)
            number = field(record, "video_id", int, label)
            if number < 0:
                raise ListFormatError(f"{label}, field 'video_id': expected a number from 0 on")
            if "id" in record:
                once(seen, field(record, "id", int, label), place, f"{label}, field 'id'")
            question, answer = _pair(record, label)
            yield Asked([place], [name_of(number)], [question], [answer])


def _video_numbers(
    records: Sequence[dict[str, Any]], places: Sequence[int], seen: dict[int, int]
) -> list[int] | None:
    """The numbers of the videos of many records, whose ids are noted; None: look at each."""
    ids = [record["id"] for record in records if "id" in record]
    found: list[Any] = [record.get("video_id") for record in records]
    if set(map(type, found)) != {int} or min(found) < 0 or len(ids) not in (0, len(found)):
        return None
    fine = not ids or (set(map(type, ids)) == {int} and all_new(seen, ids, places))
    return found if fine else None


def _lines(path: str) -> Iterator[Asked]:
    texts_of = Texts(path, "answer_type", "video_id", "question", "answer", place=_LINE)
    name_of = functools.cache(lambda name: without_extension(name.strip()))
    for lines, records in read_json_lines(path):
        columns = texts_of.columns(records)
        for numbers, (kinds, videos, questions, answers) in (
            [(lines, columns)]
            if columns is not None
            else (([line], zip(texts_of(record, line))) for line, record in zip(lines, records))
        ):
            videos, questions = [*map(name_of, videos)], [*map(str.strip, questions)]
            yield Asked(numbers, videos, questions, answers, kinds)


def _cells(path: str, prefix: str, notes: Notes) -> Iterator[Asked]:
    needed = ("video_id", "question", "answer")
    header, rows = read_columns(path, needed)
    cells_of = operator.itemgetter(*map(header.index, needed))
    of_kind = header.index("type") if "type" in header else None
    name_of = functools.cache(lambda given: _prefixed(given, prefix))
    for lines, every in blocks_of(rows):
        videos, questions, answers = map(list, zip(*map(cells_of, every)))
        kinds = [None if of_kind is None else _word(cells[of_kind]) for cells in every]
        if missing := kinds.count(None):
            notes["questions with a type that is no word: their first word is the type"] += missing
        if not all(map(str.strip, itertools.chain(videos, questions, answers))):
            for line, cells in zip(lines, every):
                for name, value in zip(needed, cells_of(cells)):
                    field({name: value}, name, str, f"{path}, line {line}")
        videos, questions = [*map(name_of, videos)], [*map(str.strip, questions)]
        yield Asked(lines, videos, questions, answers, kinds)


def _prefixed(given: str, prefix: str) -> str:
    video = without_extension(given.strip())
    return f"{prefix}{video}" if video.isdecimal() else video


@functools.cache
def _word(cell: str) -> str | None:
    """A type that is a word; None for others."""
    kind = cell.strip()
    return None if not kind or kind.isdecimal() else kind


def _classes(path: str, split: str, answers: Sequence[str]) -> Iterator[Asked]:
    document = checked(read_json(path), dict, path)
    texts_of = Texts(path, "video", "question")
    name_of = functools.cache(lambda name: without_extension(name.strip()))
    for places, entries in blocks_of(enumerate(field(document, split, list, path))):
        columns = texts_of.columns(entries)
        named = None if columns is None else _named_answers(entries, answers)
        if columns is not None and named is not None:
            videos, questions = columns
            yield Asked(places, [*map(name_of, videos)], questions, named)
            continue
        for place, entry in zip(places, entries):
            label = f"{path}, {split}[{place}]"
            record = checked(entry, dict, label)
            number = field(record, "answer", int, label)
            if not 0 <= number < len(answers):
                raise ListFormatError(
                    f"{label}, field 'answer': class {number} is not among the "
                    f"{len(answers)} labels"
                )
            video = name_of(field(record, "video", str, label))
            question = field(record, "question", str, label)
            yield Asked([place], [video], [question], [answers[number]])


def _named_answers(records: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[str] | None:
    """The answers of many records, which hold their classes; None: look at each of them."""
    classes: list[Any] = [record.get("answer") for record in records]
    if set(map(type, classes)) != {int} or min(classes) < 0 or max(classes) >= len(answers):
        return None
    return [answers[number] for number in classes]


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
        once(lines, cells[1], line, label)
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
    asked: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for numbers, videos, questions, answers, kinds in every:
        if names:
            found: list[Any] = [names.get(video) for video in videos]
            if None in found:
                at = found.index(None)
                raise ListFormatError(
                    f"{path}, {place.format(numbers[at])}, field 'video_id': {videos[at]!r} is not "
                    "in the mapping"
                )
            videos = found
        if kinds is None or None in kinds:
            first_words = (question.partition(" ")[0] for question in questions)
            by_word = map(_type_of, first_words)
            kinds = [kind or word for kind, word in zip(kinds or itertools.repeat(None), by_word)]
        rows = (
            {"question": question, "answer": answer, "type": kind}
            for question, answer, kind in zip(questions, answers, kinds)
        )
        for video, same in itertools.groupby(videos):
            asked[video] += itertools.islice(rows, len(list(same)))
    repeated = 0
    for given in asked.values():
        if len({each["question"] for each in given}) < len(given):
            repeated += len(given) - len({(each["question"], each["answer"]) for each in given})
    if repeated:
        notes["questions that repeat with the same answer, kept"] += repeated
    if not asked:
        raise ListFormatError(f"{path}: no questions")
    for video, given in asked.items():
        yield {"video": video, "questions": given}


@functools.cache
def _type_of(word: str) -> str:
    """The letters that a question's first word begins with, if they are one of TYPES."""
    first = re.match(r"[a-z]+", word.lower())
    return first[0] if first and first[0] in TYPES else OTHER
