"""Answers follow from the sample's own metadata, without ambiguity."""

from __future__ import annotations

import pytest

from svilm_fast.data.world import generate_clip
from svilm_fast.data.world.vocabulary import (
    ACTIONS,
    BACKGROUNDS,
    COLORS,
    NUMBERS,
    PHRASES,
    SHAPES,
    SIDES,
)

ANSWERS = {*ACTIONS, *BACKGROUNDS, *COLORS, *NUMBERS, *SHAPES, *SIDES, "yes", "no"}


def _answers(sample, kind, question):
    """All answers that the metadata gives to a question."""
    objects = sample["objects"]
    named = [thing for thing in objects if f"{thing['color']} {thing['shape']}" in question]
    if kind == "count":
        return {NUMBERS[len(objects)]}
    if kind == "background":
        return {sample["background"]}
    if kind == "color":
        return {thing["color"] for thing in objects if f"the {thing['shape']}?" in question}
    if kind == "shape":
        return {thing["shape"] for thing in objects if f"the {thing['color']} object" in question}
    if kind == "action":
        return {thing["motion"] for thing in named}
    if kind in ("actor_color", "actor_shape"):
        attribute = kind.removeprefix("actor_")
        return {
            thing[attribute]
            for thing in objects
            for action in thing["motion"].split(" then ")
            if question.endswith(f"that {PHRASES[action][0]}?")
        }
    if kind == "side":
        return {
            event["side"]
            for event in sample["events"]
            if "side" in event
            and objects[event["object"]] in named
            and question.endswith(f"{event['label']}?")
        }
    if kind == "order":
        ordered = sorted(sample["events"], key=lambda event: event["start_s"])
        return {ordered[0 if question.endswith("first?") else -1]["label"]}
    assert kind == "yes_no"
    (thing,) = named
    done = any(question.endswith(f" {action}?") for action in thing["motion"].split(" then "))
    return {"yes" if done else "no"}


@pytest.fixture(scope="module")
def asked():
    return [generate_clip(seed, size=32, object_counts=(1, 2, 1))[1] for seed in range(60)]


def test_answers_are_derived_from_the_metadata(asked):
    for sample in asked:
        for question in sample["questions"]:
            derived = _answers(sample, question["type"], question["question"])
            assert derived == {question["answer"]}, (question, sample["captions"]["fused"])


def test_every_type_is_asked_and_every_answer_is_in_the_vocabulary(asked):
    questions = [question for sample in asked for question in sample["questions"]]
    assert {question["type"] for question in questions} == {
        "count",
        "background",
        "color",
        "shape",
        "action",
        "actor_color",
        "actor_shape",
        "side",
        "order",
        "yes_no",
    }
    assert {question["answer"] for question in questions} <= ANSWERS


def test_yes_and_no_are_both_right_at_times(asked):
    answers = [q["answer"] for s in asked for q in s["questions"] if q["type"] == "yes_no"]
    assert 0.25 < answers.count("yes") / len(answers) < 0.75


def test_no_question_is_asked_twice(asked):
    for sample in asked:
        texts = [question["question"] for question in sample["questions"]]
        assert len(set(texts)) == len(texts)
