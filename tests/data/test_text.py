"""Captions are cleaned in one place, alike for packing, training and tokenizers."""

from __future__ import annotations

import json

import pytest

from svilm_fast.data import text
from svilm_fast.data.captions import REPAIRED, pick_captions
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import CaptionError, ListFormatError, SampleJsonError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.data.skips import Skip
from svilm_fast.data.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a man &amp; a woman dance &quot;salsa&quot;", 'a man & a woman dance "salsa"'),
        ("rock &amp;amp; roll &#39;n&#39; soul", "rock & roll 'n' soul"),
        ("great game \ud83d", "great game \ufffd"),
        ("a\x00 dog\x1b[31m \x9b0;1mruns\x1b\x7f", "a dog runs"),
        ("\ufeff a dog ", "a dog"),
        ("\ufeff \ufeff\ufeffa dog", "a dog"),
        (" a dog\n", "a dog"),
    ],
)
def test_what_becomes_of_a_caption(raw, clean):
    assert text.clean(raw) == clean
    assert text.clean(clean) == clean


@pytest.mark.parametrize(
    "caption",
    ["A man walks, a dog runs.", "naïve café", "遛狗", "नमस्ते", "\U0001f468\u200d\U0001f469",
     "two\nlines\tand a tab", "AT&T store, R&D", "می‌روم"],
)  # fmt: skip
def test_ordinary_captions_stay_as_they_are(caption):
    assert text.clean(caption) == caption
    assert not text.is_damaged(caption)
    assert text.is_visible(caption)


@pytest.mark.parametrize(
    "caption", ["", " ", "\u200b", "\u200e\u2060 \ufeff", "\u3164", "\u2800", "\ufffd", "\x00"]
)
def test_captions_without_a_visible_character_are_none(caption):
    with pytest.raises(CaptionError, match="s-1: no caption"):
        pick_captions({"caption": caption}, "fused", "s-1")


def test_repaired_captions_are_counted():
    found = pick_captions({"caption": ["a\x00b", "half \ud83d", "fine &amp; good"]}, "fused", "s")
    assert found.texts == ("ab", "half \ufffd", "fine & good")
    assert found.repaired == 2


def test_the_tokenizer_cleans_in_training_and_in_use():
    raw, clean = "a man &amp;amp; a woman\ud83d", "a man & a woman\ufffd"
    one, two = Tokenizer.train([raw] * 9, 300), Tokenizer.train([clean] * 9, 300)
    for tokenizer in (one, two):
        tokens, mask = tokenizer.encode_batch([raw, clean], 24)
        assert tokens[0].tolist() == tokens[1].tolist()
        assert tokenizer.decode(tokens[0][mask[0]]) == clean
    assert one.encode_batch([clean], 24)[0].tolist() == two.encode_batch([clean], 24)[0].tolist()


def test_packing_and_training_give_the_same_text_and_both_count(tmp_path, videos):
    lines = [
        '{"video": "a.mp4", "caption": "a man &amp; a woman dance &quot;salsa&quot;"}',
        '{"video": "b.mp4", "caption": "great game \\ud83d", "mood": "\\ude00"}',
        '{"video": "c.mp4", "caption": "\\u200b"}',
    ]
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    report = pack(str(tmp_path / "list.jsonl"), tmp_path / "shards")
    assert report.notes == {REPAIRED: 1}
    assert f"  note: 1 x {REPAIRED}" in report.lines()
    assert [(skip.sample, skip.reason) for skip in report.refused] == [("c.mp4", "no caption")]
    expected = [('a man & a woman dance "salsa"',), ("great game \ufffd",)]
    for where in ("list.jsonl", "shards"):
        table = open_split(DataConfig(train=str(tmp_path / where)), "train")
        assert [sample.captions for sample in table] == expected
        assert table.read_metadata(1)["mood"] == "\ufffd"
    assert table[0].nouns == (("man", "woman", "salsa"),)

    config = DataConfig(train=str(tmp_path / "list.jsonl"), workers=0)
    dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
    assert dataset.report.notes[REPAIRED] == 1
    assert "1 x captions repaired" in dataset.report.summary()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("un café".encode("latin-1"), r"line 1, byte 0xe9 at 6"),
        ("one\ntwo\ncaf\xe9".encode("latin-1"), r"line 3, byte 0xe9 at 11"),
        ("video,caption".encode("utf-16"), "it begins with the byte order mark of UTF-16"),
    ],
)
def test_bytes_of_other_encodings_are_refused_with_their_place(data, what):
    with pytest.raises(ListFormatError, match=rf"x\.csv: not UTF-8 text \({what}\): save it"):
        text.decode_utf8(data, "x.csv", ListFormatError)


def test_a_latin_1_caption_in_a_shard_or_a_folder_is_refused(tmp_path, make_shards, videos):
    caption = "un café à Paris".encode("latin-1")
    folder = make_shards(2, replace={1: {"json": b"{}", "txt": caption}})
    table = open_split(DataConfig(train=str(folder)), "train")
    assert [sample.id for sample in table] == ["s0000"]
    assert "s0001.txt: not UTF-8 text (line 1, byte 0xe9 at 6)" in table.rejected[0].message

    (tmp_path / "videos").mkdir()
    for name, data in (("a", caption), ("b", b"\xef\xbb\xbfa dog")):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(videos[0])
        (tmp_path / "videos" / f"{name}.txt").write_bytes(data)
    report = pack(str(tmp_path / "videos"), tmp_path / "out")
    assert [(skip.sample, skip.reason) for skip in report.refused] == [("a.mp4", "no caption")]
    table = open_split(DataConfig(train=str(tmp_path / "out")), "train")
    assert table[0].captions == ("a dog",)


def test_any_text_of_a_sample_can_be_written():
    value = {"a\ud800": ["\udfff", 1, None, {"b": "c"}]}
    assert text.storable(value) == {"a\ufffd": ["\ufffd", 1, None, {"b": "c"}]}
    json.dumps(text.storable(value), ensure_ascii=False).encode()
    skip = Skip.of("\ud800.mp4", CaptionError("no \udfff"))
    assert (skip.sample, skip.message) == ("\ufffd.mp4", "no \ufffd")
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(SampleJsonError, match="nested too deeply"):
        text.storable(deep)
