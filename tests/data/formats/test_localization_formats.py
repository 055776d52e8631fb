"""ActivityNet JSON, THUMOS text and CUHK scores: what is read, written and refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import activitynet, cuhk, reader_of, thumos


def database(**changes):
    video = {
        "subset": "validation",
        "duration": 30.0,
        "annotations": [{"segment": [1.5, 10], "label": "Long jump"}],
    }
    return {"version": "VERSION 1.3", "database": {"-abc_DEF123": video | changes}}


@pytest.fixture
def written(tmp_path):
    def write(content, name="gt.json"):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode())
        return path

    return write


def test_annotations(written):
    found = activitynet.read_annotations(written(database()))
    assert list(found.videos) == ["-abc_DEF123"]
    video = found.subset("validation")["-abc_DEF123"]
    assert (video.duration, video.segments) == (30.0, ((1.5, 10.0, "Long jump"),))
    assert found.classes("validation") == ("Long jump",)
    with pytest.raises(UserError, match="no subset 'testing'; they have validation"):
        found.subset("testing")


def test_byte_order_mark_and_crlf(written):
    text = "\ufeff" + json.dumps(database(), indent=1).replace("\n", "\r\n")
    assert activitynet.read_annotations(written(text)).classes() == ("Long jump",)


@pytest.mark.parametrize(
    "segment, message",
    [
        ([10, 10], "ends at 10 s, not after its start"),
        ([10, 5], "ends at 5 s, not after its start"),
        ([-1, 5], "begins at -1 s, before the video"),
        ([5, 31], "ends at 31 s, after the video's end at 30 s"),
    ],
)
def test_wrong_segments(written, segment, message):
    entries = [{"segment": [0, 5], "label": "a"}, {"segment": segment, "label": "a"}]
    path = written(database(annotations=entries))
    with pytest.raises(ListFormatError) as error:
        activitynet.read_annotations(path)
    assert str(error.value).startswith(f"{path}: database.-abc_DEF123.annotations[1], field")
    assert message in str(error.value)
    kept = activitynet.read_annotations(path, bad_segments="keep")
    assert [s[:2] for s in kept.videos["-abc_DEF123"].segments] == [(0, 5), tuple(segment)]
    dropped = activitynet.read_annotations(path, bad_segments="drop")
    assert len(dropped.videos["-abc_DEF123"].segments) == 1
    assert dropped.notes == {"segments that are wrong, drop": 1}


def test_repeated_annotations_are_kept_and_counted(written):
    entries = [{"segment": [0, 5], "label": "a"}] * 2
    found = activitynet.read_annotations(written(database(annotations=entries)))
    assert len(found.videos["-abc_DEF123"].segments) == 2
    assert found.notes == {"annotations that are repeated": 1}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"version": 1}, "no field 'database'"),
        ({"database": {}}, "database: holds no video"),
        (database(annotations=None), "database.-abc_DEF123, field 'annotations'"),
        (database(annotations=[{"segment": [1], "label": "a"}]), "annotations[0], field 'segment'"),
        (
            database(annotations=[{"segment": [1, "x"], "label": "a"}]),
            "annotations[0], field 'segment[1]'",
        ),
        (database(annotations=[{"segment": [1, 2]}]), "annotations[0]: no field 'label'"),
        (database(subset=3), "database.-abc_DEF123, field 'subset'"),
        (database(duration="long"), "database.-abc_DEF123, field 'duration'"),
        ('{"database": {"a": 1,\n"a": 2}}', "line 2: the key 'a' appears twice"),
        ('{"database": {"a":\n{"duration": NaN}}}', "line 2: NaN is not a JSON number"),
        ('{"database": ', "line 1: not valid JSON"),
    ],
)
def test_annotations_that_cannot_be_read(written, content, message):
    path = written(content)
    with pytest.raises(ListFormatError) as error:
        activitynet.read_annotations(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_annotations_go_out_as_they_came(written, tmp_path):
    first = activitynet.read_annotations(written(database()))
    again = written(activitynet.annotations_json(first.videos, "1"), "again.json")
    assert activitynet.read_annotations(again).videos == first.videos


def test_predictions_go_out_and_in(tmp_path):
    rows = {"v1": [activitynet.PredictedSegment(0.5, 2.0, "Long jump", 0.25)], "v2": []}
    path = tmp_path / "predictions.json"
    activitynet.write_predictions(path, rows, external_data={"used": False})
    assert activitynet.read_predictions(path) == rows
    raw = json.loads(path.read_text())
    assert raw["results"]["v1"] == [{"segment": [0.5, 2.0], "label": "Long jump", "score": 0.25}]
    assert set(raw) == {"version", "results", "external_data"}


def test_wrong_predictions(written):
    path = written({"results": {"a": [{"segment": [0, 1], "label": "x", "score": None}]}})
    with pytest.raises(ListFormatError, match=r"results\.a\[0\], field 'score'"):
        activitynet.read_predictions(path)
    with pytest.raises(ListFormatError, match="results: holds no video"):
        activitynet.read_predictions(written({"results": {}}))


@pytest.mark.parametrize(
    "name, meant",
    [
        ("-abc_DEF123", "-abc_DEF123"),
        ("v_-abc_DEF123", "-abc_DEF123"),
        ("v_-abc_DEF123.mp4", "-abc_DEF123"),
        ("v_12345abcd", "v_12345abcd"),  # an id of its own, not a prefix
        ("12345abcd.csv", None),
    ],
)
def test_ids_of_feature_files(name, meant):
    known = {"-abc_DEF123": 0, "v_12345abcd": 1, "12345abcX": 2}
    assert activitynet.known_video(name, known) == meant


def test_blocked_lists(written):
    assert activitynet.read_blocked(written('["a", "b"]')) == {"a", "b"}
    assert activitynet.read_blocked(written({"a": "missing"})) == {"a"}
    assert activitynet.read_blocked(written("a\r\n\r\nb\r\n", "blocked.txt")) == {"a", "b"}
    known = {"a": 1, "v_c": 2}
    assert activitynet.read_blocked(written('["v_a", "c.mp4", "d"]'), known) == {"a", "v_c", "d"}
    with pytest.raises(ListFormatError, match="holds no video id"):
        activitynet.read_blocked(written("\n", "blocked.txt"))
    with pytest.raises(ListFormatError, match=r"\[1\]"):
        activitynet.read_blocked(written('["a", 3]'))


def test_rows_for_our_list(written):
    notes = Counter()
    entries = [{"segment": [0, 5], "label": "a"}, {"segment": [9, 9], "label": "a"}]
    path = written(database(annotations=entries))
    rows = list(reader_of("activitynet")([str(path)], notes, subset="validation"))
    assert [(r["video"], r["start"], r["end"], r["label"]) for r in rows] == [
        ("-abc_DEF123", 0.0, 5.0, "a")
    ]
    assert notes == {"segments that are wrong, drop": 1}


def test_thumos(written):
    jump = written(
        "video_test_0000004  0.2  1.1\r\nvideo_test_0000004  3.0  4.0\r\n", "LongJump_test.txt"
    )
    unclear = written("video_test_0000004  7.0  8.0\n", "Ambiguous_test.txt")
    found = thumos.read_annotations([jump, unclear])
    video = found.videos["video_test_0000004"]
    assert video.segments == ((0.2, 1.1, "LongJump"), (3.0, 4.0, "LongJump"))
    assert (video.subset, video.duration) == ("testing", None)
    assert found.notes == {"ambiguous segments left out": 1}
    rows = list(reader_of("thumos")([str(jump)], Counter()))
    assert rows[1]["start"] == 3.0


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("LongJump.txt", "v 0 1\n", "<Class>_test.txt"),
        ("LongJump_test.txt", "v 0 1\nv 0\n", "line 2: expected video, start and end"),
        ("LongJump_test.txt", "v 0 1\nv 5 4\n", "line 2, field 'end'"),
        ("LongJump_test.txt", "v -1 4\n", "line 1, field 'start'"),
        ("LongJump_test.txt", "v 1 nan\n", "line 1, field 'end'"),
        ("LongJump_test.txt", "\n", "no annotation"),
    ],
)
def test_wrong_thumos_files(written, name, text, message):
    path = written(text, name)
    with pytest.raises(ListFormatError) as error:
        thumos.read_annotations([path])
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_class_scores_keep_the_order_of_the_file(written, tmp_path):
    path = written({"results": {"a": [0.1, 0.9]}, "class": ["Zumba", "Archery"]})
    found = cuhk.read_class_scores(path)
    assert found.classes == ("Zumba", "Archery")
    assert found.scores["a"].tolist() == [0.1, 0.9]
    again = tmp_path / "again.json"
    cuhk.write_class_scores(again, found.classes, found.scores)
    assert json.loads(again.read_text()) == json.loads(path.read_text())
    with pytest.raises(ValueError, match="one score for each class"):
        cuhk.write_class_scores(again, ["x"], {"a": np.zeros(2)})


@pytest.mark.parametrize(
    "content, message",
    [
        ({"results": {"a": [0.5]}}, "no field 'class'"),
        ({"results": {"a": [0.5]}, "class": ["x", "y"]}, "results.a: 1 score, expected"),
        ({"results": {"a": [0.5, 0.5]}, "class": ["x", "x"]}, "class: 'x' appears twice"),
        ({"results": {"a": [0.5, -1]}, "class": ["x", "y"]}, "results.a[1]"),
        ({"results": {"a": [0.5, True]}, "class": ["x", "y"]}, "results.a[1]"),
        ({"results": {}, "class": ["x"]}, "results: is empty"),
        ({"results": {"a": []}, "class": []}, "class: is empty"),
        ('{"results": {"a": [NaN]}, "class": ["x"]}', "NaN is not a JSON number"),
    ],
)
def test_wrong_class_scores(written, content, message):
    path = written(content)
    with pytest.raises(ListFormatError) as error:
        cuhk.read_class_scores(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
