"""Accuracy of answers against a count by hand and by brute force."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from svilm_fast.evaluation.answers import (
    AnswerAccuracy,
    MajorityBaseline,
    answer_accuracy,
    normalised,
)

WORDS = ("cat", "Cat", " cat ", "dog", "two  dogs", "two dogs", "", None)


def test_a_case_by_hand() -> None:
    found = answer_accuracy(
        [
            ("what", "cat", "Cat"),
            ("what", "dog", "cat"),
            ("what", None, "cat"),
            ("who", "two  dogs", "two dogs"),
        ]
    )
    assert (found.total.asked, found.total.right) == (4, 2)
    assert found.total.accuracy == 50.0
    assert {kind: (c.asked, c.right) for kind, c in found.by_type.items()} == {
        "what": (3, 1),
        "who": (1, 1),
    }
    # The mean over the types is not the mean over the questions.
    assert found.mean_of_types == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_nothing_asked_is_nothing_right() -> None:
    empty = AnswerAccuracy()
    assert (empty.total.accuracy, empty.mean_of_types) == (0.0, 0.0)


def test_ten_thousand_random_cases_against_brute_force() -> None:
    rng = random.Random(5)
    for _ in range(10_000):
        kinds = rng.sample(("what", "who", "how", "where"), rng.randint(1, 4))
        asked = [
            (rng.choice(kinds), rng.choice(WORDS), rng.choice([w for w in WORDS if w is not None]))
            for _ in range(rng.randint(1, 12))
        ]
        # Parts, as of ranks and batches of any size: sums, never means of means.
        found, place = AnswerAccuracy(), 0
        while place < len(asked):
            size = rng.randint(1, 5)
            found.merge(answer_accuracy(asked[place : place + size]))
            place += size
        rights = [
            given is not None and given.lower().split() == truth.lower().split()
            for _, given, truth in asked
        ]
        assert found.total.accuracy == pytest.approx(
            float(100 * Fraction(rights.count(True), len(asked)))
        )
        shares = []
        for kind in dict.fromkeys(each[0] for each in asked):
            mine = [right for right, each in zip(rights, asked, strict=True) if each[0] == kind]
            assert found.by_type[kind].asked == len(mine)
            assert found.by_type[kind].right == sum(mine)
            shares.append(Fraction(sum(mine), len(mine)))
        assert list(found.by_type) == list(dict.fromkeys(each[0] for each in asked))
        assert found.mean_of_types == pytest.approx(float(100 * sum(shares) / len(shares)))


def test_the_majority_answers_by_type_and_the_first_wins_a_tie() -> None:
    pairs = [("what", "cat"), ("what", "Dog"), ("what", "dog"), ("who", "man"), ("who", "woman")]
    found = MajorityBaseline.of([*pairs, ("who", "cat"), ("how", "cat")])
    assert (found.answer("what"), found.answer("who"), found.answer("how")) == ("dog", "man", "cat")
    assert found.answer("when") == "cat"  # of an unknown type: of all questions
    with pytest.raises(ValueError, match="no questions"):
        MajorityBaseline.of([])


def test_the_majority_is_the_best_constant_answer_of_a_type() -> None:
    rng = random.Random(6)
    for _ in range(500):
        pairs = [(rng.choice("ab"), rng.choice("xyz")) for _ in range(rng.randint(1, 15))]
        found = MajorityBaseline.of(pairs)
        for kind in {kind for kind, _ in pairs}:
            of_type = [answer for each, answer in pairs if each == kind]
            assert of_type.count(found.answer(kind)) == max(map(of_type.count, "xyz"))


def test_normalised() -> None:
    assert normalised("  Two\tDogs \n") == "two dogs"
