"""InternVid's JSONL and Parquet: converted, and read as lists."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import reader_of
from svilm_fast.data.formats.convert import convert_files
from svilm_fast.data.lists import ListFile
from svilm_fast.data.segments import seconds_of

ROWS = [
    ("-aBcDeFgH_1", "00:00:01.250", "00:00:04.000", "A dog runs.", 4.5, 0.42),
    ("zzzzzzzzzzz", "01:02:03.456", "1:02:10", "A cat, asleep.", 5.5, 0.30),
    ("-aBcDeFgH_1", "00:00:09.100", "00:00:12.900", "A dog rests.", 3.0, 0.50),
]
NAMES = ("YoutubeID", "Start_timestamp", "End_timestamp", "Caption", "Aesthetic_Score", "UMT_Score")


def _jsonl(rows=ROWS, names=NAMES, **more):
    return "".join(json.dumps(dict(zip(names, row)) | more) + "\n" for row in rows)


def test_rows_hold_times_sources_and_scores(rows_of):
    found = rows_of("internvid", {"a.jsonl": _jsonl()})
    assert found[1] == {
        "video": "zzzzzzzzzzz",
        "start": 3723.456,
        "end": 3730.0,
        "caption": "A cat, asleep.",
        "source_id": "zzzzzzzzzzz",
        "aesthetic_score": 5.5,
        "umt_score": 0.3,
    }
    assert [row["source_id"] for row in found] == [row[0] for row in ROWS]
    upper = rows_of("internvid", {"b.jsonl": _jsonl(names=[name.upper() for name in NAMES])})
    assert upper == found


def test_every_millisecond_is_the_nearest_float():
    for milliseconds in range(3_599_000, 3_600_999, 7):
        seconds, rest = divmod(milliseconds, 1000)
        text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
        assert seconds_of(text) == float(Fraction(milliseconds, 1000)), text


def test_parquet_gives_the_rows_of_jsonl(rows_of, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(NAMES, zip(*ROWS))) | {"Odd": [float("nan"), 1.0, 2.0]}
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({k: list(v) for k, v in columns.items()}), path)
    found = list(reader_of("internvid")([str(path)], Counter()))
    assert [row.pop("odd") for row in found] == [None, 1.0, 2.0]
    assert found == rows_of("internvid", {"a.jsonl": _jsonl()})
    listed = list(ListFile(str(path)).rows())
    assert [row.video for row in listed] == [row[0] for row in ROWS]
    assert listed[2].caption == "A dog rests."
    assert listed[2].line == 3


def test_scores_filter(rows_of):
    kept = rows_of("internvid", {"a.jsonl": _jsonl()}, where="UMT_Score>=0.42, Aesthetic_Score > 4")
    assert [row["caption"] for row in kept] == ["A dog runs."]
    assert rows_of.notes == {
        "rows left out by UMT_Score>=0.42": 1,
        "rows left out by Aesthetic_Score > 4": 1,
    }


def test_names_of_clips_that_are_cut_already(rows_of):
    found = rows_of("internvid", {"a.jsonl": _jsonl()}, video="{id}_{start}_{end}.mp4")
    assert found[0]["video"] == "-aBcDeFgH_1_00:00:01.250_00:00:04.000.mp4"
    assert "start" not in found[0]
    assert found[0]["source_id"] == "-aBcDeFgH_1"


def test_captions_by_grain(rows_of):
    given = _jsonl([(*ROWS[0][:3], "A dog.", "A brown dog runs.")], (*NAMES[:3], "C", "F"))
    found = rows_of("internvid", {"a.jsonl": given}, coarse="C", fine="F", fused="Missing")
    assert found[0]["captions"] == {"coarse": "A dog.", "fine": "A brown dog runs."}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"Start_timestamp": "00:00:75.5"}, {}, "line 1, field 'end_timestamp': .* is not after"),
        ({"Start_timestamp": "soon"}, {}, "line 1, field 'start_timestamp': 'soon' is not a time"),
        ({"End_timestamp": None}, {}, "line 1, field 'end_timestamp': None is not a time"),
        ({"Caption": " "}, {}, "line 1, field 'caption': expected a text"),
        ({"YoutubeID": 7}, {}, "line 1, field 'youtubeid': expected a text"),
        (
            {"UMT_Score": "x"},
            {"where": "UMT_Score>0"},
            "line 1, field 'umt_score': expected a numb",
        ),
        ({}, {"where": "UMT_Score=1"}, "option where: 'UMT_Score=1' is no condition"),
        ({}, {"video": "{youtube}"}, "option video"),
        ({}, {"coarse": "Nothing"}, "line 1: no caption in the fields nothing"),
    ],
)
def test_errors_name_line_and_field(rows_of, change, options, message):
    with pytest.raises(ListFormatError, match=message):
        rows_of("internvid", {"a.jsonl": _jsonl(ROWS[:1], **change)}, **options)


def test_a_column_that_is_missing_is_named(rows_of):
    with pytest.raises(ListFormatError, match="line 1: no field 'youtubeid'; it has: caption"):
        rows_of("internvid", {"a.jsonl": '{"Caption": "A dog."}\n'})


def test_rows_of_a_source_are_written_together(written, tmp_path):
    paths = written({"a.jsonl": _jsonl()})
    plain = convert_files("internvid", paths, tmp_path / "plain.jsonl")
    grouped = convert_files("internvid", paths, tmp_path / "grouped.jsonl", group=True)
    before = (tmp_path / "plain.jsonl").read_text().splitlines()
    after = (tmp_path / "grouped.jsonl").read_text().splitlines()
    assert after == [before[0], before[2], before[1]]
    assert grouped.sha256 != plain.sha256
    assert (grouped.rows, grouped.videos, grouped.counts["caption"]) == (3, 2, 3)
    again = convert_files("internvid", paths, tmp_path / "grouped.jsonl", group=True)
    assert again.sha256 == grouped.sha256
    assert {each.name for each in tmp_path.iterdir()} == {"a.jsonl", "plain.jsonl", "grouped.jsonl"}
