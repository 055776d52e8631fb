"""The English noun tagger reads English captions only; the others are counted."""

from __future__ import annotations

import json

import pytest

from svilm_fast.data.config import DataConfig, NounsConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.language import is_english
from svilm_fast.data.nouns import OTHER_LANGUAGE, TextBlobNouns, in_other_language
from svilm_fast.data.pack import pack

OTHER = [
    "un hombre camina con su perro por la calle mojada",
    "UN HOMBRE CAMINA CON SU PERRO",
    "perro negro",
    "ein Mann geht mit seinem Hund im Park spazieren",
    "un homme marche avec son chien dans la rue",
    "um homem passeia com o cachorro no parque",
    "un uomo cammina con il suo cane nel parco",
    "een man loopt met zijn hond in het park",
    "en man går med sin hund i parken",
    "mężczyzna spaceruje z psem w parku",
    "bir adam parkta köpeğiyle yürüyor",
    "một người đàn ông đi dạo với chó",
    "человек гуляет с собакой",
    "一个男人在公园里遛狗",
    "رجل يمشي مع كلبه",
]
ENGLISH = [
    "a man walks a dog in the park",
    "kylian mbappe scores a goal",
    "gopro surfing pipeline",
    "clip 3: a turquoise star wobbles over a dark floor.",
    "TIMELAPSE OF A CITY AT NIGHT",
    "person demoing youtube app on iphone",
    "Kid's b-day!!",
    "Tour de France in the Val de Loire",
    'a 12" ruler on a table',
    "red circle",
    "",
    "42",
]


@pytest.mark.parametrize("caption", OTHER)
def test_captions_in_other_languages_have_no_nouns(caption):
    assert not is_english(caption)
    assert TextBlobNouns()(caption) == []


@pytest.mark.parametrize("caption", ENGLISH)
def test_english_captions_are_read(caption):
    assert is_english(caption)


def test_words_of_another_script_are_no_nouns_of_an_english_caption():
    assert [n.text for n in TextBlobNouns()("a man sells 饺子 in the street")] == ["man", "street"]


def test_other_extractors_are_asked_about_every_language():
    assert in_other_language(NounsConfig(), OTHER[0])
    assert not in_other_language(NounsConfig(extractor="spacy"), OTHER[0])
    assert not in_other_language(NounsConfig(), ENGLISH[0])


def test_packing_and_training_count_them(tmp_path, videos):
    rows = [
        {"video": "a.mp4", "caption": OTHER[0]},
        {"video": "b.mp4", "caption": ["一个男人", "a man walks"]},
        {"video": "c.mp4", "caption": OTHER[3], "nouns": ["Mann"]},
    ]
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = pack(str(tmp_path / "list.jsonl"), tmp_path / "shards")
    assert report.notes == {OTHER_LANGUAGE: 2}
    assert report.without_nouns == 2
    for where in ("list.jsonl", "shards"):
        config = DataConfig(train=str(tmp_path / where), workers=0)
        dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
        assert dataset.report.notes[OTHER_LANGUAGE] == 2
        found = [nouns for sample in dataset.table for nouns in sample.nouns]
        assert sorted({noun for nouns in found for noun in nouns}) == ["Mann", "man"]
