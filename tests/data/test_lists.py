"""Lists of videos and captions: columns, 1k-A files, errors that name the line."""

from __future__ import annotations

import json
import os

import fsspec
import pytest

from svilm_fast.data.captions import pick_captions
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import (
    CaptionError,
    DataError,
    ListFormatError,
    MissingFileError,
    SampleJsonError,
)
from svilm_fast.data.lists import VideoFolder, read_list
from svilm_fast.data.samples import open_split
from svilm_fast.data.segments import segment_of_row


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_1k_a_file_gives_videos_and_sentences(tmp_path):
    text = (
        "key,vid_key,video_id,sentence\n"
        "ret0,msr9770,video9770,a person is connecting something to system\n"
        'ret1,msr9771,video9771,"a little girl, singing"\n'
    )
    rows = read_list(_write(tmp_path / "test.csv", text))
    assert [(row.video, row.caption) for row in rows] == [
        ("video9770", "a person is connecting something to system"),
        ("video9771", "a little girl, singing"),
    ]
    assert rows[0].extra == {"key": "ret0", "vid_key": "msr9770"}
    assert rows[1].line == 3


def test_jsonl_tsv_and_byte_order_marks(tmp_path):
    lines = [
        {"video": "a.mp4", "caption": "A.", "fps": 5},
        {"video": "b.mp4", "caption": ["x", "y"]},
    ]
    text = "\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n"
    rows = read_list(_write(tmp_path / "c.jsonl", text))
    assert (rows[0].caption, rows[0].extra) == ("A.", {"fps": 5})
    assert (rows[1].caption, rows[1].extra) == (None, {"caption": ["x", "y"]})
    rows = read_list(_write(tmp_path / "c.tsv", "Video\tText\na\tone, two\n"))
    assert (rows[0].video, rows[0].caption) == ("a", "one, two")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Video ID,Caption,Start Time,END\na,x,0.5,1\n"),
        ("a.jsonl", '{"Video ID": "a", "Caption": "x", " Start  Time": "0.5", "END": "1"}'),
    ],
)
def test_names_of_columns_are_read_in_any_case_and_with_spaces(tmp_path, name, text):
    (row,) = read_list(_write(tmp_path / name, text))
    assert (row.video, row.caption) == ("a", "x")
    assert row.extra == {"start_time": "0.5", "end": "1"}
    assert segment_of_row(row.extra, "x") == (0.5, 1.0)


@pytest.mark.parametrize(
    ("columns", "unread"),
    [
        ({"timestamp": [0, 1]}, "timestamp"),
        ({"Timestamps": [[0, 1]]}, "timestamps"),
        ({"segment": [0, 1]}, "segment"),
        ({"start_frame": 0, "end_frame": 9}, "start_frame"),
        ({"start": 0, "end (s)": 1}, "end_(s)"),
        ({"start": 0, "end": 1, "start_frame": 0, "timestamp": "2024-01-01"}, None),
        ({"segment_id": 3, "weekend": 1}, None),
    ],
)
def test_a_part_of_a_video_under_another_name_is_not_ignored(tmp_path, columns, unread):
    row = json.dumps({"video": "a", "caption": "x", **columns})
    path = _write(tmp_path / "a.jsonl", row)
    if unread is None:
        assert len(read_list(path)) == 1
        return
    with pytest.raises(ListFormatError) as caught:
        read_list(path)
    assert f"the column {unread!r} seems to name a part" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no rows"),
        ("a.csv", "foo,bar\n1,2\n", "no video column among foo, bar"),
        ("a.csv", "video,caption\na,b,c\n", "line 2: expected 2 columns"),
        ("a.csv", "video,caption\na\n", "line 2: expected 2 columns"),
        ("a.csv", "video,caption\n,b\n", "'video' is empty"),
        ("a.csv", 'video,caption\na,"b\n', "line 2"),
        ("a.jsonl", '{"video": "a"}\n{"video"\n', "line 2: not valid JSON"),
        ("a.jsonl", '{"video": "a", "Video": "b"}', "line 1: two keys differ only in case"),
        ("a.jsonl", '{"video": null}', "line 1: the column 'video' is empty"),
        ("a.jsonl", '{"video": 1.5}', "line 1: the column 'video' is 1.5: give the video's name"),
        ("a.jsonl", '{"video": true}', "line 1: the column 'video' is True: give the video's name"),
        ("a.jsonl", '{"video": ["a"]}', r"line 1: the column 'video' is \['a'\]: give the video's"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object"),
    ],
)
def test_malformed_lists_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ListFormatError, match=message) as caught:
        read_list(_write(tmp_path / name, text))
    assert name in str(caught.value)


def test_a_missing_list_and_a_binary_one(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing\.csv"):
        read_list(str(tmp_path / "nothing.csv"))
    (tmp_path / "x.csv").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ListFormatError, match="not UTF-8"):
        read_list(str(tmp_path / "x.csv"))


def test_videos_are_found_with_and_without_extension_and_only_inside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    (tmp_path / "in" / "b.webm").write_bytes(b"")
    (tmp_path / "out.mp4").write_bytes(b"")
    folder = VideoFolder(str(tmp_path / "in"))
    assert folder.locate("a.mp4").endswith("in/a.mp4")
    assert folder.locate("b").endswith("in/b.webm")
    for name in ("c", "c.mp4", "../out.mp4", "/etc/passwd", "pipe:x.mp4"):
        with pytest.raises(MissingFileError):
            folder.locate(name)
    with pytest.raises(MissingFileError, match=r"data\.videos"):
        VideoFolder(str(tmp_path / "nowhere"))


def test_absolute_paths_inside_the_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in" / "sub" / "a.mp4").write_bytes(b"")
    (tmp_path / "in" / "How to: bake.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for where in ("in", "./in/", str(tmp_path / "in"), "link", str(tmp_path / "link")):
        folder = VideoFolder(where)
        absolute = folder.locate(str(tmp_path / "in" / "sub" / "a.mp4"))
        assert absolute == folder.locate("sub/a.mp4") == folder.locate("sub/../sub/a")
        assert absolute.endswith("/sub/a.mp4")
        assert folder.locate("How to: bake.mp4").endswith("/How to: bake.mp4")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("{root}/out.mp4", r"is not inside .*: give '{root}', or a folder above all listed videos"),
        ("../out.mp4", "is not inside .*: give a folder above all videos of the list"),
        ("sub/../../out.mp4", "is not inside .*: give a folder above"),
        ("https://host/a.mp4", "is not inside .*: download it"),
        ("sub\\a.mp4", "no video .*; put / between folders"),
    ],
)
def test_other_names_get_a_hint_what_to_give(tmp_path, name, hint):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.mp4").write_bytes(b"")
    (tmp_path / "out.mp4").write_bytes(b"")
    with pytest.raises(MissingFileError, match=hint.format(root=tmp_path)):
        VideoFolder(str(tmp_path / "in")).locate(name.format(root=tmp_path))


def test_videos_on_a_store_may_be_named_by_their_address():
    memory = fsspec.filesystem("memory")
    memory.pipe("/clips/sub/a.mp4", b"")
    folder = VideoFolder("memory://clips")
    expected = "memory://clips/sub/a.mp4"
    for name in ("sub/a.mp4", "memory://clips/sub/a.mp4", "a"):
        assert folder.locate(name) == expected
    for name in ("memory://other/a.mp4", "s3://clips/sub/a.mp4"):
        with pytest.raises(MissingFileError, match="is not inside"):
            folder.locate(name)


def test_names_of_one_file_are_one_video(tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "soft.mp4").symlink_to("b.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "b.mp4")
    folder = VideoFolder(str(tmp_path))
    names = ("b", "b.mp4", "./b.mp4", str(tmp_path / "b.mp4"), "soft", "hard.mp4")
    assert {folder.locate(name) for name in names} == {f"{tmp_path}/b.mp4"}


def test_files_without_numbers_are_different_videos(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"x" * (1 + ord(name)))
    real = os.stat

    for number in (0, 7):  # as some network file systems answer

        def unnumbered(path, *rest, number=number, **options):
            found = list(real(path, *rest, **options))
            return os.stat_result([found[0], number, *found[2:]])

        monkeypatch.setattr(os, "stat", unnumbered)
        folder = VideoFolder(str(tmp_path))
        assert {folder.locate(name) for name in "ab"} == {
            f"{tmp_path}/a.mp4",
            f"{tmp_path}/b.mp4",
        }


def test_webvid_lists_name_the_folder_of_a_video(tmp_path, videos):
    for place in ("006001_006050", "1_50", "other"):
        (tmp_path / "videos" / place).mkdir(parents=True)
    for place in ("006001_006050/7.mp4", "1_50/7.mp4", "other/8.mp4"):
        (tmp_path / "videos" / place).write_bytes(videos[0])
    text = (
        "videoid,contentUrl,duration,page_dir,name\n"
        '7,none,PT00H00M11S,006001_006050,"a forest from above, winter"\n'
        "7,none,PT00H00M11S,1_50,a dog\n8,none,PT1S,gone,a cat\n"
    )
    path = _write(tmp_path / "results.csv", text)
    table = open_split(DataConfig(train=path, videos=str(tmp_path / "videos")), "train")
    found = [(s.id, s.captions[0], s.video.path.split("videos/")[1]) for s in table]
    assert found == [
        ("7#0", "a forest from above, winter", "006001_006050/7.mp4"),
        ("7#1", "a dog", "1_50/7.mp4"),
        ("8", "a cat", "other/8.mp4"),
    ]


def test_missing_videos_and_captions_of_a_list_are_counted(tmp_path, videos):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(videos[0])
    text = "video,caption\na.mp4,one\na.mp4,two\nb.mp4,\nc.mp4,four\n"
    table = open_split(DataConfig(train=_write(tmp_path / "t.csv", text)), "train")
    assert [sample.id for sample in table] == ["a.mp4#0", "a.mp4#1"]
    assert {skip.sample: skip.reason for skip in table.rejected} == {
        "b.mp4": "no caption",
        "c.mp4": "missing file",
    }
    assert table.read_metadata(1)["caption"] == "two"
    assert table.read_video(0) == videos[0]


def test_a_split_without_any_usable_sample_says_why(tmp_path):
    config = DataConfig(train=_write(tmp_path / "t.csv", "video,caption\nc.mp4,x\n"))
    with pytest.raises(DataError, match=r"no usable sample; for example c\.mp4: no video 'c\.mp4'"):
        open_split(config, "train")
    with pytest.raises(MissingFileError, match=r"data\.val is not set"):
        open_split(config, "val")


def test_captions_by_grain_with_their_nouns():
    record = {
        "captions": {"coarse": " A circle. ", "fine": "It spins."},
        "nouns": {"coarse": [{"text": "circle", "span": [2, 8]}], "fine": []},
    }
    found = pick_captions(record, "coarse", "s")
    assert (found.texts, found.nouns) == (("A circle.",), (("circle",),))
    assert pick_captions(record, "fine", "s").nouns == ((),)
    with pytest.raises(CaptionError, match="it has: coarse, fine"):
        pick_captions(record, "fused", "s")


def test_plain_and_several_captions():
    assert pick_captions({"caption": "A dog."}, "fused", "s").nouns == (None,)
    found = pick_captions({"caption": "A dog.", "nouns": ["dog"]}, "fused", "s")
    assert found.nouns == (("dog",),)
    record = {"caption": ["A dog.", "", "A cat."], "nouns": [["dog"], [], ["cat"]]}
    found = pick_captions(record, "fine", "s")
    assert (found.texts, found.nouns) == (("A dog.", "A cat."), (("dog",), ("cat",)))
    assert pick_captions({"captions": ["x", "y"]}, "fine", "s").texts == ("x", "y")


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({}, CaptionError),
        ({"caption": "  "}, CaptionError),
        ({"caption": 3}, CaptionError),
        ({"caption": [None]}, CaptionError),
        ({"caption": "x", "nouns": "dog"}, SampleJsonError),
        ({"caption": "x", "nouns": [{"name": "dog"}]}, SampleJsonError),
        ({"caption": "x", "nouns": [{"text": "dog", "span": [1]}]}, SampleJsonError),
    ],
)
def test_unusable_captions_are_typed_errors(record, error):
    with pytest.raises(error, match="sample-3"):
        pick_captions(record, "fused", "sample-3")


@pytest.mark.parametrize(
    "bad", ['{"video": "x"', '{"video": "x", "video": "y"}', '{"a": NaN}', "3"]
)
def test_an_error_amid_many_lines_names_its_line(tmp_path, bad):
    lines = ['{"video": "a, {b", "caption": "]"}', "", '{"video": "c"}, {"video": "d"}'[:14]] * 40
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, bad, *lines]))
    with pytest.raises(ListFormatError, match=rf"a\.jsonl, line {len(lines) + 1}: "):
        read_list(str(path))
    path.write_text("\n".join([*lines, '{"Video ": "e", "caption": "f"}']))
    rows = read_list(str(path))
    assert [row.line for row in rows[:3]] == [1, 3, 4]
    assert (rows[-1].video, rows[-1].caption, rows[-1].line) == ("e", "f", len(lines) + 1)


def test_lines_longer_than_a_piece_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("svilm_fast.data.lists._PIECE_BYTES", 7)
    text = "video,caption\r\na,\u00e9\u00e8\r\nb,a long caption\n\nc,d"
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    found = [(row.video, row.caption, row.line) for row in read_list(str(path))]
    assert found == [("a", "\u00e9\u00e8", 2), ("b", "a long caption", 3), ("c", "d", 5)]
