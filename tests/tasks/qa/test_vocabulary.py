"""The vocabulary of answers: made from training answers, or read from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import AnnotationError, ListFormatError
from svilm_fast.tasks.qa.questions import questions_of
from svilm_fast.tasks.qa.vocabulary import AnswerVocabulary


def test_the_most_frequent_answers_and_ties_by_first_appearance() -> None:
    answers = ["dog", "cat", "cat", "bird", "dog", "ant"]
    assert AnswerVocabulary.most_frequent(answers, None).answers == ("dog", "cat", "bird", "ant")
    three = AnswerVocabulary.most_frequent(answers, 3)
    assert three.answers == ("dog", "cat", "bird")
    assert three.index["bird"] == 2
    with pytest.raises(UserError, match="1 different answers"):
        AnswerVocabulary.most_frequent(["cat", "cat"], None)


def test_the_hash_depends_on_answers_and_order() -> None:
    one = AnswerVocabulary(("dog", "cat"))
    assert one.sha256 == hashlib.sha256(b'["dog","cat"]').hexdigest()
    assert one.sha256 != AnswerVocabulary(("cat", "dog")).sha256


@pytest.mark.parametrize("content", [["Dog", "cat"], {"cat": 1, "dog": 0}])
def test_a_given_vocabulary(content, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content))
    found = AnswerVocabulary.read(path)
    assert found.answers == ("dog", "cat")
    assert found.leaked({"dog"}, ["cat", "cat", "ant"]) == ["cat"]
    assert found.leaked({"dog", "cat"}, ["cat"]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "A"]', r"\[1\]: 'A' repeats \[0\]"),
        ('["a", 1]', r"\[1\]: expected an answer, found 1"),
        ('["a"]', "at least two"),
        ('{"a": 0, "b": 0}', r"'b': expected a class of its own, found 0"),
        ('{"a": 0, "a": 1}', r"repeats"),
        ('{"a": 0, "b": 2}', "the classes are not 0 to 1"),
        ("3", "expected a list of answers"),
        ("[", "not valid JSON"),
    ],
)
def test_a_broken_vocabulary_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(ListFormatError, match=message) as caught:
        AnswerVocabulary.read(path)
    assert "answers.json" in str(caught.value)


def test_questions_of_a_sample() -> None:
    record = {"questions": [{"question": " who? ", "answer": "Two  Men", "type": "who"}]}
    assert questions_of(record, "s") == [("who?", "two men", "who")]
    assert questions_of({}, "s") == []
    for broken, message in (
        ("x", "s: questions: expected a list"),
        (["x"], r"s: questions\[0\]: expected an object"),
        ([{"question": "q"}], r"s: questions\[0\]\.answer: expected a text, found None"),
        ([{"question": " ", "answer": "a"}], r"s: questions\[0\]\.question"),
        ([{"question": "q", "answer": "a", "type": 3}], r"s: questions\[0\]\.type"),
    ):
        with pytest.raises(AnnotationError, match=message):
            questions_of({"questions": broken}, "s")
