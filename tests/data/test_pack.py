"""Packing checks every file, says what it refuses, and its shards are read back."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from svilm_fast.data import pack_plan, pack_shard
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.errors import DataError, MissingFileError, ShardError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.data.shards import ShardFile, ShardWriter


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
    assert [sample.id for sample in table] == ["good_0", "good_1", "good_2"]
    assert table[0].captions == ("A red dog runs.", "It runs quickly.")
    assert table[0].nouns == (("red dog",), ())
    assert table[2].nouns == (("cup",),)
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
    with ShardWriter(tmp_path / "foreign") as writer:
        writer.write("a", {"json": b"{}"})
    with pytest.raises(ShardError, match="already holds shards"):
        pack(str(source / "list.jsonl"), tmp_path / "foreign")
    with pytest.raises(MissingFileError, match="neither"):
        pack(str(source / "nothing"), tmp_path / "new")
    (source / "one.csv").write_text("video,caption\ncut.mp4,x\n")
    with pytest.raises(DataError, match=r"no sample could be packed; cut\.mp4"):
        pack(str(source / "one.csv"), tmp_path / "new")


def _list(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "list.jsonl")


def _packed(out):
    return list(open_split(DataConfig(train=str(out)), "train"))


def test_long_names_get_short_keys_that_stay_the_same(tmp_path, videos):
    title = "How to bake a very good loaf of bread at home from scratch with four ingredients " * 2
    names = ["a", f"{title}[x]", f"{title}[y]", "\u9762" * 60, "..", "???"]
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    path = _list(tmp_path, [{"video": f"{n}.mp4", "caption": "a dog"} for n in names])
    keys = []
    for out in ("one", "two"):
        report = pack(path, tmp_path / out, threads=2)
        assert (report.written, report.refused) == (6, [])
        keys.append([sample.id for sample in _packed(tmp_path / out)])
    assert keys[0] == keys[1]
    assert keys[0][0] == "a"
    assert keys[0][1].startswith("How_to_bake_a_very_good_loaf_of_bread_at_home_from_scratch")
    assert keys[0][3].startswith("\u9762\u9762")
    assert len(set(keys[0])) == 6
    assert max(len(key.encode()) for key in keys[0]) <= 80


def test_one_video_under_several_names_is_one_sample(tmp_path, videos):
    (tmp_path / "b.mp4").write_bytes(videos[0])
    (tmp_path / "soft.mp4").symlink_to("b.mp4")
    names = ["b", "b.mp4", "./b.mp4", str(tmp_path / "b.mp4"), "soft.mp4"]
    rows = [{"video": name, "caption": f"caption {i}"} for i, name in enumerate(names)]
    report = pack(_list(tmp_path, rows), tmp_path / "out")
    assert (report.written, report.captions) == (1, 5)
    (sample,) = _packed(tmp_path / "out")
    assert sample.id == "b"
    assert sample.captions == tuple(f"caption {i}" for i in range(5))


def test_a_folder_with_a_link_packs_its_video_once(tmp_path, videos):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(videos[0])
    (tmp_path / "in" / "b.mp4").symlink_to("a.mp4")
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text(f"caption {name}")
    assert pack(str(tmp_path / "in"), tmp_path / "out").written == 1
    assert _packed(tmp_path / "out")[0].captions == ("caption a", "caption b")


def test_captions_and_nouns_of_several_lines_stay_together(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    rows = [
        {"video": "a.mp4", "caption": ["A dog.", "", "A cat."], "nouns": [["dog"], [], ["tom"]]},
        {"video": "a.mp4", "caption": "A cup.", "nouns": []},
        {"video": "a.mp4", "captions": ["A tree."]},
    ]
    pack(_list(tmp_path, rows), tmp_path / "out")
    (sample,) = _packed(tmp_path / "out")
    assert sample.captions == ("A dog.", "A cat.", "A cup.", "A tree.")
    assert sample.nouns == (("dog",), ("tom",), (), ("tree",))


def test_grains_of_several_captions_are_read_as_those_of_the_list(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    (tmp_path / "b.mp4").write_bytes(videos[1])
    several = {"coarse": ["a dog and a cat", " ", "two birds"], "fused": ["a red ball"]}
    rows = [
        {"video": "a.mp4", "captions": several},
        {"video": "b.mp4", "captions": {"coarse": "", "fused": "a dog"}, "nouns": {"fused": ["x"]}},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert not pack(str(tmp_path / "list.jsonl"), tmp_path / "out").refused
    for grain in ("coarse", "fused"):

        def texts(source, grain=grain):
            config = DataConfig(train=str(source), captions=grain)
            return [(s.captions, s.nouns) for s in open_split(config, "train", nouns=True)]

        assert texts(tmp_path / "out") == texts(tmp_path / "list.jsonl")
    assert len(texts(tmp_path / "out")) == 2


def test_captions_by_grain_on_several_lines_are_refused_not_lost(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    (tmp_path / "b.mp4").write_bytes(videos[1])
    rows = [
        {"video": "a.mp4", "captions": {"coarse": "A dog."}},
        {"video": "a.mp4", "captions": {"coarse": "A cat."}},
        {"video": "b.mp4", "captions": {"coarse": "A cup &amp; a spoon."}},
    ]
    report = pack(_list(tmp_path, rows), tmp_path / "out", config=DataConfig(captions="coarse"))
    assert [(skip.sample, skip.reason) for skip in report.refused] == [("a.mp4", "no caption")]
    table = open_split(DataConfig(train=str(tmp_path / "out"), captions="coarse"), "train")
    assert table[0].captions == ("A cup & a spoon.",)
    assert table.read_metadata(0)["captions"] == {"coarse": "A cup & a spoon."}


@pytest.mark.parametrize("where", ["describe", "key_of", "decode_limited"])
def test_no_single_sample_ends_the_packing(tmp_path, videos, monkeypatch, where):
    """Whatever a step raises for one sample, that sample is refused and the others are packed."""
    module = pack_plan if where == "key_of" else pack_shard
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(videos["abc".index(name)])
    real = getattr(module, where)

    def fails_for_b(*arguments, **options):
        if arguments[0] in ("b.mp4", videos[1]) or "'b.mp4'" in repr(arguments):
            raise KeyError("odd")
        return real(*arguments, **options)

    monkeypatch.setattr(module, where, fails_for_b)
    rows = [{"video": f"{name}.mp4", "caption": "a dog"} for name in "abc"]
    report = pack(_list(tmp_path, rows), tmp_path / "out")
    assert [sample.id for sample in _packed(tmp_path / "out")] == ["a", "c"]
    assert [skip.sample for skip in report.refused] == ["b.mp4"]
    assert "odd" in report.refused[0].message


def test_after_a_failed_packing_the_next_one_continues(tmp_path, videos, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    path = _list(tmp_path, [{"video": f"{name}.mp4", "caption": "a dog"} for name in "abc"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    real = ShardFile.add

    def full_disk(self, key, members):
        if key == "c":
            raise OSError(28, "No space left on device")
        real(self, key, members)

    monkeypatch.setattr(ShardFile, "add", full_disk)
    with pytest.raises(OSError, match="No space left"):
        pack(path, tmp_path / "out", shard_samples=1)
    shards = [f"shard-00000{number}.tar" for number in range(2)]
    indexes = [f"{shard}.index.json" for shard in shards]
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"mine.txt", "pack_manifest.jsonl", *shards, *indexes}
    monkeypatch.undo()
    assert pack(path, tmp_path / "out", shard_samples=1).written == 3
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_captions_are_described_by_one_thread_at_a_time(tmp_path, videos, monkeypatch):
    """A second thread would tag with the half of TextBlob's lexicon that is loaded."""
    real, inside, most = pack_shard.describe, [], []

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return real(*arguments)

    monkeypatch.setattr(pack_shard, "describe", watched)
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    rows = [{"video": f"{name}.mp4", "caption": "a dog"} for name in "abcd"]
    assert pack(_list(tmp_path, rows), tmp_path / "out", threads=3).written == 4
    assert most == [1, 1, 1, 1]
