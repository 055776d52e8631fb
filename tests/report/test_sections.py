"""The sections and headline figures of a pre-training run's page."""

from __future__ import annotations

import numpy as np
import pytest

from svilm_fast.evaluation.pointing import PointingScore
from svilm_fast.objectives.config import ObjectivesConfig
from svilm_fast.objectives.grounding import GroundingConfig
from svilm_fast.report.page import HeadlineTile
from svilm_fast.report.sections import (
    clip_sections,
    headline,
    noun_sharpness,
    retrieval_sections,
)

OBJECTIVES = ObjectivesConfig()


def test_clips_bring_their_sections(make_probe) -> None:
    titles = [section.title for section in clip_sections([make_probe()], OBJECTIVES)]
    assert titles == ["Groups and nouns", "Temporal grouping", "Similarity of segments"]
    bare = make_probe(groups=None, blended=None)
    assert [s.title for s in clip_sections([bare], OBJECTIVES)] == ["Similarity of segments"]


@pytest.mark.parametrize(
    ("objectives", "groups", "time"),
    [
        ({"grounding": {"weight": 1.0, "similarity": "softmax"}}, "", ""),
        ({"grounding": {"weight": 0.0, "similarity": "max"}}, "Grounding had weight 0", ""),
        ({"grounding": {"weight": 1.0, "similarity": "max"}}, "similarity=max", ""),
        ({"temporal": {"weight": 0.0}}, "", "had weight 0"),
    ],
)
def test_a_note_says_what_the_objectives_did_not_train(
    make_probe, objectives, groups, time
) -> None:
    found = clip_sections([make_probe()], ObjectivesConfig.model_validate(objectives))
    notes = {section.title: section.notes for section in found}
    for title, part in (("Groups and nouns", groups), ("Temporal grouping", time)):
        assert len(notes[title]) == bool(part)
        assert all(part in note for note in notes[title])


def test_without_frames_there_are_no_strips(make_result) -> None:
    assert [s.title for s in retrieval_sections(make_result(frames=False), 2)] == ["Retrieval"]


def test_headline_compares_with_the_colours(make_result) -> None:
    tiles = headline(make_result(), {})
    assert tiles[0] == HeadlineTile("100.0 %", "text to video R@1", "95 %: 100.0 to 100.0")
    assert tiles[2] == HeadlineTile("8.0 ×", "R@1 over colour sets", "they reach 12.5 %")


def test_the_sharpness_is_the_last_one_of_the_log() -> None:
    log = {"beta_grounding": (np.arange(2), np.array([10.0, 12.5]))}
    assert noun_sharpness(OBJECTIVES, log) == 12.5


def test_without_a_log_the_sharpness_is_the_configured_start() -> None:
    configured = ObjectivesConfig.model_validate({"grounding": {"beta": {"initial": 7.0}}})
    assert noun_sharpness(configured, {}) == 7.0
    assert noun_sharpness(OBJECTIVES, {}) == GroundingConfig().beta.initial


def test_the_pointing_score_is_on_the_page_with_its_chance(make_probe) -> None:
    score = PointingScore(score=0.5, chance=0.125, nouns=1, too_small=2)
    groups = clip_sections([make_probe()], OBJECTIVES, pointing=(score, 3))[0]
    assert "Pointing score: 50% of the attention of 1 noun of 3 clips" in groups.text
    assert "random token would reach 12.5%" in groups.text
    assert "Left out: 2 nouns" in groups.text
    assert headline(None, {}, score) == [
        HeadlineTile("50.0 %", "pointing score of nouns", "chance 12.5 %")
    ]
