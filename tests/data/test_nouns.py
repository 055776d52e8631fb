"""Nouns of hand-labelled captions; spans; what the json may hold."""

from __future__ import annotations

import pytest

from svilm_fast.data.config import NounsConfig
from svilm_fast.data.errors import DataError, SampleJsonError
from svilm_fast.data.nouns import (
    Noun,
    TextBlobNouns,
    build_extractor,
    nouns_from_json,
    nouns_to_json,
    singular,
)

LABELLED = {
    "A red circle moves left while two blue squares spin.": ["red circle", "blue square"],
    "An orange triangle grows; a large dark-green star enters from the left.": [
        "orange triangle",
        "large dark-green star",
    ],
    "A small purple hexagon blinks, then a yellow ring leaves to the right.": [
        "small purple hexagon",
        "yellow ring",
    ],
    "Children throw a basketball at a hoop in a school gym.": [
        "child",
        "basketball",
        "hoop",
        "school gym",
    ],
    "A woman with dark hair puts make-up on her eye with a brush.": [
        "woman",
        "dark hair",
        "make-up",
        "eye",
        "brush",
    ],
    "A man in shorts cleans a swimming pool with a pole from the edge.": [
        "man",
        "shorts",
        "pool",
        "pole",
    ],
    "A path runs under green trees in a sunny park.": ["path", "green tree", "sunny park"],
    "A woman is chopping onions.": ["woman", "onion"],
    "A boy plays guitar on stage.": ["boy", "guitar", "stage"],
    "A cartoon character dances in the kitchen.": ["cartoon character", "kitchen"],
    "A man kneels in the snow and plays with a brown dog.": ["man", "snow", "brown dog"],
    "a person is connecting something to a computer": ["person", "computer"],
}


def test_precision_and_recall_on_hand_labelled_captions():
    extract = TextBlobNouns()
    hits = found = labelled = 0
    for caption, nouns in LABELLED.items():
        texts = [noun.text for noun in extract(caption)]
        hits += len(set(texts) & set(nouns))
        found += len(texts)
        labelled += len(nouns)
    assert hits / found >= 0.95
    assert hits / labelled >= 0.95


def test_spans_cover_the_words_they_name():
    extract = TextBlobNouns()
    for caption in LABELLED:
        for noun in extract(caption):
            piece = caption[noun.start : noun.end].lower()
            assert piece.split()[:-1] == noun.text.split()[:-1]
            assert singular(piece.split()[-1]) == noun.text.split()[-1]


def test_a_single_letter_is_its_own_singular():
    assert singular("s") == "s"
    assert [noun.text for noun in TextBlobNouns()("the letter S")] == ["letter s"]


@pytest.mark.parametrize("caption", ["", "   ", "Running quickly.", "It was then!", "!!! ??", "😀"])
def test_captions_without_nouns_give_none(caption):
    assert TextBlobNouns()(caption) == []


def test_each_noun_once_and_heads_alone_when_asked():
    extract = TextBlobNouns(phrases=False)
    texts = [noun.text for noun in extract("A red ball, a blue ball and two dogs.")]
    assert texts == ["ball", "dog"]


def test_commas_end_a_phrase():
    texts = [noun.text for noun in TextBlobNouns()("A dog, cat and a big, red house.")]
    assert texts == ["dog", "cat", "red house"]


def test_json_round_trip_and_plain_words():
    nouns = [Noun("red circle", 2, 12)]
    assert nouns_from_json(nouns_to_json(nouns), "s") == nouns
    assert nouns_from_json(["dog", " "], "s") == [Noun("dog", 0, 0)]
    with pytest.raises(SampleJsonError, match="must be a list"):
        nouns_from_json({"a": 1}, "s")


def test_extractors_by_setting():
    assert build_extractor(NounsConfig(extractor="none"))("A dog.") == []
    with pytest.raises(DataError, match="python -m spacy download no_such_model"):
        build_extractor(NounsConfig(extractor="spacy", spacy_model="no_such_model"))


def test_a_template_without_its_noun_is_refused():
    with pytest.raises(ValueError, match="every template needs one"):
        NounsConfig(templates=("a video of",))
