"""Readers of UCF101, HMDB51, Kinetics and Something-Something v2: rows and refusals."""

from __future__ import annotations

from collections import Counter

import pytest

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import reader_of
from svilm_fast.data.formats.convert import convert_files

CLASSES = "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n"
UCF = {"classInd.txt": CLASSES}
SHELL = "#20_(Rhythm)!_clap & go; $HOME_nm_np1_fr_goo_0.avi"
HEAD = "label,youtube_id,time_start,time_end,split\n"
LABELS = {"Pushing something left": "0", "Holding something next to something": "1"}
RECORD = {
    "id": "78687",
    "label": "holding potato next to vicks vaporub bottle",
    "template": "Holding [something] next to [something]",
    "placeholders": ["potato", "vicks vaporub bottle"],
}


# What is right


def test_ucf101_lists_with_and_without_class_numbers(rows_of):
    video = "HandstandPushups/v_HandStandPushups_g01_c01.avi"
    expected = [{"video": video, "label": "HandstandPushups"}]
    assert rows_of("ucf101", UCF | {"trainlist01.txt": f"\ufeff{video} 2\r\n"}) == expected
    assert rows_of("ucf101", UCF | {"testlist01.txt": f"{video}\r\n\r\n"}) == expected


@pytest.fixture
def hmdb(tmp_path):
    """The three splits of two classes."""
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in (1, 2, 3):
        (folder / f"clap_test_split{split}.txt").write_text(
            f"{SHELL} {split - 1} \r\nb.avi 1 \nc.avi 2 \n"
        )
        (folder / f"wave_test_split{split}.txt").write_text("b.avi 2\n")
    (folder / "README").write_text("")
    return folder


def test_hmdb51_three_splits_of_a_folder(hmdb):
    def rows(**options):
        notes = Counter()
        found = list(reader_of("hmdb51")([str(hmdb)], notes, **options))
        return [(row["video"], row["label"]) for row in found], notes

    train, notes = rows()
    assert train == [("clap/b.avi", "clap")]
    assert notes == {
        "videos of split 1 marked unused": 1,
        "videos of split 1 marked test": 2,
        "classes, where HMDB51 has 51": 2,
    }
    assert rows(split="2")[0] == [(f"clap/{SHELL}", "clap"), ("clap/b.avi", "clap")]
    test = [(f"clap/{SHELL}", "clap"), ("clap/c.avi", "clap"), ("wave/b.avi", "wave")]
    assert rows(split="3", part="test")[0] == test


def test_hmdb51_names_with_shell_characters_are_found(hmdb, tmp_path):
    videos = tmp_path / "videos" / "clap"
    videos.mkdir(parents=True)
    for name in (SHELL, "b.avi"):
        (videos / name).write_bytes(b"")
    out, options = tmp_path / "list.jsonl", {"split": "2"}
    found = convert_files("hmdb51", [str(hmdb)], out, videos=str(videos.parent), options=options)
    assert (found.rows, found.missing) == (2, {})


def test_kinetics_tables_give_file_names_with_six_digits(rows_of):
    text = HEAD + (
        '"""riding a bike""",-bcdefghij_,5,15,train\n'
        '"passing football, not in game",abcdefghijk,120.0,130.0,val\n'
        "arm_wrestling,Abcdefghijk,0,10,train\n"
        "arm wrestling,Abcdefghijk,0,10,train\n"
    )
    rows = rows_of("kinetics", {"k.csv": text.replace("\n", "\r\n")})
    assert rows == [
        {"video": "-bcdefghij__000005_000015.mp4", "label": "riding a bike"},
        {"video": "abcdefghijk_000120_000130.mp4", "label": "passing football, not in game"},
        {"video": "Abcdefghijk_000000_000010.mp4", "label": "arm wrestling"},
    ]
    assert rows_of.notes == {"rows left out that repeat an earlier one": 1, "classes": 3}
    (row,) = rows_of("kinetics", {"k.csv": text}, split="val", extension="mkv")
    assert row["video"] == "abcdefghijk_000120_000130.mkv"
    with_licence = HEAD.replace("split", "split,is_cc") + "a,abcdefghijk,0,10,train,1\n"
    assert len(rows_of("kinetics", {"k.csv": with_licence})) == 1


def test_kinetics_lists_of_class_numbers(rows_of):
    lists = {"val.csv": "arm_wrestling/a b.mp4 1\nabseiling/c.mp4 0\n"}
    assert [row["label"] for row in rows_of("kinetics-index", lists)] == [1, 0]
    names = {"classes.json": {'"arm wrestling"': 1, "abseiling": "0"}}
    expected = [
        {"video": "arm_wrestling/a b.mp4", "label": "arm wrestling"},
        {"video": "abseiling/c.mp4", "label": "abseiling"},
    ]
    assert rows_of("kinetics-index", lists | names) == expected
    names = {"classes.txt": "abseiling\narm wrestling\n"}
    assert rows_of("kinetics-index", lists | names) == expected
    assert rows_of("kinetics-index", {"val.csv": "a.mp4,1\nb.mp4,2\n"})
    assert rows_of.notes["as the smallest class number: the list may count from 1"] == 1


def test_something_something_removes_the_brackets(rows_of):
    (row,) = rows_of("ssv2", {"labels.json": LABELS, "train.json": [RECORD]})
    assert row == {
        "video": "78687.webm",
        "label": "Holding something next to something",
        "caption": RECORD["label"],
        "placeholders": RECORD["placeholders"],
    }


# What is refused


def _kinetics(row):
    return {"k.csv": HEAD + "abseiling,abcdefghijk,0,10,train\n" + row + "\n"}


def _ssv2(*records, labels=LABELS):
    return {"train.json": list(records), "labels.json": labels}


VIDEO = "ApplyEyeMakeup/v_a.avi"
REFUSED = {
    "ucf classes from 0": (
        "ucf101",
        {"classInd.txt": "0 A\n1 B\n", "l.txt": "A/v.avi 0\n"},
        "classInd.txt, line 1, field 'number': expected 1 and found 0",
    ),
    "ucf labels from 0": (
        "ucf101",
        {"l.txt": f"{VIDEO} 1\nHandstandPushups/v_b.avi 1\n", **UCF},
        "l.txt, line 2, field 'label': 1 is 'ApplyEyeMakeup'",
    ),
    "ucf label beyond the classes": (
        "ucf101",
        {"l.txt": f"{VIDEO} 3\n", **UCF},
        "line 1, field 'label': 3 is 'no class'",
    ),
    "ucf unknown folder": (
        "ucf101",
        {"l.txt": "Apply/v_a.avi 1\n", **UCF},
        "line 1, field 'video': expected a folder named after a class",
    ),
    "ucf repeated video": (
        "ucf101",
        {"l.txt": f"{VIDEO} 1\r\n{VIDEO} 1\r\n", **UCF},
        f"line 2, field 'video': '{VIDEO}' repeats",
    ),
    "ucf repeated class": (
        "ucf101",
        {"classInd.txt": "1 A\n2 A\n", "l.txt": "A/v 1\n"},
        "classInd.txt, line 2, field 'name': 'A' repeats",
    ),
    "ucf class without a name": (
        "ucf101",
        {"classInd.txt": "1\n", "l.txt": ""},
        "line 1: expected a number and the name",
    ),
    "ucf without classInd": ("ucf101", {"l.txt": f"{VIDEO} 1\n"}, "expected classInd.txt and"),
    "ucf empty classInd": ("ucf101", {"classInd.txt": "\n", "l.txt": ""}, "no classes"),
    "hmdb flag": (
        "hmdb51",
        {"wave_test_split1.txt": "a.avi 1\nb.avi 3\n"},
        "line 2, field 'flag': expected a video and 0, 1 or 2",
    ),
    "hmdb without a flag": ("hmdb51", {"wave_test_split1.txt": "a.avi\n"}, "line 1, field 'flag'"),
    "hmdb repeated video": (
        "hmdb51",
        {"wave_test_split1.txt": "a.avi 1\na.avi 2\n"},
        "line 2, field 'video': 'a.avi' repeats",
    ),
    "hmdb name of the file": ("hmdb51", {"wave_split1.txt": "a.avi 1\n"}, "expected a name like"),
    "hmdb other split": (
        "hmdb51",
        {"wave_test_split2.txt": "a.avi 1\n"},
        "no file <class>_test_split1.txt",
    ),
    "kinetics id": (
        "kinetics",
        _kinetics("a,=bcdefghijk,0,10,train"),
        "line 3, field 'youtube_id': expected eleven",
    ),
    "kinetics end before start": (
        "kinetics",
        _kinetics("a,Abcdefghijk,10,10,train"),
        "line 3, field 'time_end': 10 is not after",
    ),
    "kinetics negative": (
        "kinetics",
        _kinetics("a,Abcdefghijk,-1,10,train"),
        "line 3, field 'time_start': expected whole seconds",
    ),
    "kinetics part of a second": (
        "kinetics",
        _kinetics("a,Abcdefghijk,0,10.5,train"),
        "line 3, field 'time_end': expected whole seconds",
    ),
    "kinetics seven digits": (
        "kinetics",
        _kinetics("a,Abcdefghijk,0,1000000,train"),
        "line 3, field 'time_end': expected whole seconds of at most six digits",
    ),
    "kinetics no number": (
        "kinetics",
        _kinetics("a,Abcdefghijk,nan,10,train"),
        "line 3, field 'time_start': expected a number",
    ),
    "kinetics two labels": (
        "kinetics",
        _kinetics("zumba,abcdefghijk,0,10,train"),
        "line 3, field 'label': 'zumba', and 'abseiling' for the same clip in line 2",
    ),
    "kinetics empty label": (
        "kinetics",
        _kinetics('"""""",Abcdefghijk,0,10,train'),
        "line 3, field 'label': is empty",
    ),
    "kinetics unquoted comma": (
        "kinetics",
        _kinetics("a, b,Abcdefghijk,0,10,train"),
        "line 3: expected 5 columns and found 6",
    ),
    "kinetics test table": (
        "kinetics",
        {"k.csv": "youtube_id,time_start,time_end,split\nabcdefghijk,0,10,test\n"},
        "line 1: no column 'label'",
    ),
    "kinetics list from 1": (
        "kinetics-index",
        {"l.txt": "abseiling/a.mp4 1\n", "classes.txt": "abseiling\narm wrestling\n"},
        "line 1, field 'label': 1 is 'arm wrestling' in",
    ),
    "kinetics list beyond the classes": (
        "kinetics-index",
        {"l.txt": "a.mp4 0\nb.mp4 2\n", "classes.txt": "abseiling\narm wrestling\n"},
        "line 2, field 'label': 2, and",
    ),
    "kinetics list without a number": (
        "kinetics-index",
        {"l.txt": "a.mp4 abseiling\n"},
        "line 1, field 'label': expected a path and the number",
    ),
    "kinetics list repeated path": (
        "kinetics-index",
        {"l.txt": "a.mp4 0\na.mp4 1\n"},
        "line 2, field 'path': 'a.mp4' repeats",
    ),
    "kinetics class map with a gap": (
        "kinetics-index",
        {"classes.json": {"a": 0, "b": 2}, "l.txt": "a.mp4 0\n"},
        "not numbered from 0 without gaps",
    ),
    "kinetics class map with one number twice": (
        "kinetics-index",
        {"classes.json": {"a": 0, "b": 0}, "l.txt": "a.mp4 0\n"},
        "'b': 0 is 'a' already",
    ),
    "kinetics class map with a name twice": (
        "kinetics-index",
        {"classes.json": '{"a": 0,\n"a": 1}', "l.txt": "a.mp4 0\n"},
        "line 2: the key 'a' appears twice",
    ),
    "ssv2 swapped fields": (
        "ssv2",
        _ssv2(RECORD | {"label": RECORD["template"], "template": RECORD["label"]}),
        "[0], field 'template': \"holding potato next to vicks vaporub bottle\" is not in",
    ),
    "ssv2 unknown template": (
        "ssv2",
        _ssv2(RECORD, RECORD | {"id": "2", "template": "Eating [something]"}),
        "[1], field 'template': \"Eating [something]\" is not in",
    ),
    "ssv2 repeated id": ("ssv2", _ssv2(RECORD, RECORD), "[1], field 'id': '78687' repeats"),
    "ssv2 test.json": ("ssv2", _ssv2({"id": "1"}), "[0]: no field 'template'; it has: id"),
    "ssv2 id": ("ssv2", _ssv2(RECORD | {"id": None}), "[0], field 'id': expected a number"),
    "ssv2 labels from 1": (
        "ssv2",
        _ssv2(RECORD, labels={"Holding something next to something": "1"}),
        "labels.json: the classes are not numbered from 0",
    ),
    "ssv2 NaN": ("ssv2", {"train.json": "[\nNaN]", "labels.json": LABELS}, "line 2: NaN is not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(case, rows_of):
    name, contents, message = REFUSED[case]
    with pytest.raises(ListFormatError) as error:
        rows_of(name, contents)
    assert message in str(error.value)
    if case == "ssv2 swapped fields":
        assert "seem to be swapped" in str(error.value)


def test_an_unknown_value_of_an_option_is_refused(hmdb):
    with pytest.raises(ListFormatError, match="option split=4: give one of 1, 2, 3"):
        list(reader_of("hmdb51")([str(hmdb)], {}, split="4"))
