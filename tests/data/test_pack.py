"""Packing checks every file, says what it refuses, and its shards are read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError, MissingFileError, ShardError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split


@pytest.fixture
def source(tmp_path, videos, make_video, make_ramp):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        (folder / f"good {number}.mp4").write_bytes(videos[number])
    cut = make_video(make_ramp(30), movflags="faststart")
    (folder / "cut.mp4").write_bytes(cut[: int(0.8 * len(cut))])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"this is no video" * 9)
    (folder / "silent.mp4").write_bytes(videos[3])
    rows = [
        {"video": "good 0.mp4", "caption": "A red dog runs."},
        {"video": "good 0.mp4", "caption": "It runs quickly."},
        {"video": "good 1.mp4", "caption": "A blue cat sits.", "mood": "calm"},
        {"video": "good 2.mp4", "captions": {"coarse": "A cup.", "fine": "It falls."}},
        {"video": "cut.mp4", "caption": "Cut."},
        {"video": "empty.mp4", "caption": "Empty."},
        {"video": "text.mp4", "caption": "Text."},
        {"video": "silent.mp4", "caption": " "},
        {"video": "gone.mp4", "caption": "Gone."},
    ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_good_clips_are_packed_and_bad_ones_reported(source, tmp_path):
    out = tmp_path / "shards"
    report = pack(str(source / "list.jsonl"), out, shard_samples=2, threads=2)
    assert (report.written, report.captions, report.frames) == (3, 4, 36)
    assert report.without_nouns == 2
    assert {skip.sample: skip.reason for skip in report.refused} == {
        "cut.mp4": "truncated video",
        "empty.mp4": "no frames",
        "text.mp4": "undecodable video",
        "silent.mp4": "no caption",
        "gone.mp4": "missing file",
    }
    assert len(report.shards) == 2
    text = report.lines(examples=2)
    assert "refused 5" in text[0]
    assert text[-1] == "  ... and 3 more in pack_report.json"
    saved = json.loads((out / "pack_report.json").read_text())
    assert len(saved["refused"]) == 5

    table = open_split(DataConfig(train=str(out), captions="coarse"), "train")
    assert [sample.id for sample in table.samples] == ["good_0", "good_1", "good_2"]
    assert table.samples[0].captions == ("A red dog runs.", "It runs quickly.")
    assert table.samples[0].nouns == (("red dog",), ())
    assert table.samples[2].nouns == (("cup",),)
    record = table.read_metadata(1)
    assert (record["mood"], record["num_frames"], record["fps"]) == ("calm", 12, 8.0)
    assert record["nouns"] == [{"text": "blue cat", "span": [2, 10]}]


def test_list_and_packed_shards_give_the_same_pixels(source, tmp_path):
    pack(str(source / "list.jsonl"), tmp_path / "shards")
    config = {"workers": 0, "captions": "coarse"}
    batches = []
    for where in (source / "list.jsonl", tmp_path / "shards"):
        settings = DataConfig(train=str(where), **config)
        dataset = ClipDataset(
            settings, "train", prepare_tokenizer(settings), frames=3, image_size=16
        )
        place = next(
            i
            for i, name in enumerate(dataset.ids)
            if name.startswith("good_1") or name == "good 1.mp4"
        )
        batches.append(dataset.batch([place]))
    np.testing.assert_array_equal(batches[0].frames, batches[1].frames)
    assert batches[0].captions == batches[1].captions
    assert batches[0].nouns == batches[1].nouns == [["blue cat"]]


def test_a_folder_with_captions_beside_its_videos(source, tmp_path):
    for name in ("list.jsonl", "cut.mp4", "text.mp4"):
        (source / name).unlink()
    (source / "good 0.txt").write_text("A dog.\n")
    (source / "good 1.json").write_text('{"caption": "A cat.", "nouns": ["cat"]}')
    (source / "good 2.json").write_text("{")
    report = pack(str(source), tmp_path / "shards")
    assert report.written == 2
    assert {skip.sample for skip in report.refused} == {"good 2.mp4", "empty.mp4", "silent.mp4"}


def test_packing_the_same_list_twice_gives_the_same_bytes(source, tmp_path):
    for name in "ab":
        pack(str(source / "list.jsonl"), tmp_path / name, threads=3)
    left, right = (tmp_path / name / "shard-000000.tar" for name in "ab")
    assert left.read_bytes() == right.read_bytes()


def test_nothing_to_pack_and_a_used_folder_are_errors(source, tmp_path):
    pack(str(source / "list.jsonl"), tmp_path / "out")
    with pytest.raises(ShardError, match="already holds shards"):
        pack(str(source / "list.jsonl"), tmp_path / "out")
    with pytest.raises(MissingFileError, match="neither"):
        pack(str(source / "nothing"), tmp_path / "new")
    (source / "one.csv").write_text("video,caption\ncut.mp4,x\n")
    with pytest.raises(DataError, match=r"no sample could be packed; cut\.mp4"):
        pack(str(source / "one.csv"), tmp_path / "new")
