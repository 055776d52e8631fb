"""Readers of MSR-VTT, DiDeMo, LSMDC, MSVD, ActivityNet Captions and VATEX: rows and refusals."""

from __future__ import annotations

import pickle

import pytest

from svilm_fast.data.errors import ListFormatError
from svilm_fast.data.formats import reader_of

HEAD = "key,vid_key,video_id,sentence\n"
MSRVTT = {
    "videos": [{"video_id": "video0", "split": "train"}, {"video_id": "video1", "split": "test"}],
    "sentences": [
        {"sen_id": 0, "video_id": "video0", "caption": "a man runs"},
        {"sen_id": 1, "video_id": "video1", "caption": "a cat"},
        {"sen_id": 2, "video_id": "video0", "caption": "a person is running"},
    ],
}
LSMDC_ROW = "1_A_00.00.51.926-00.00.54.129\t0:51\t0:54\t0:50\t0:55\t{}\n"
ANET = {
    "v_-abcdefghij": {
        "duration": 20.0,
        "timestamps": [[0.5, 9.5], [8.0, 20.0]],
        "sentences": [" A man sits.", "He stands up. "],
    }
}
VATEX = [{"videoID": "-Ab_cdEfgh1_000010_000020", "enCap": ["a dog", "a big dog"], "chCap": ["狗"]}]


def _captions(*sentences):
    return pickle.dumps({"vid1": [sentence.split() for sentence in sentences]}, protocol=2)


# What is right


def test_msrvtt_test_list(rows_of):
    text = "\ufeff" + HEAD + 'ret0,msr1,video1,"a man, in ""red"""\nret1,msr2,video2,a 12" ruler\n'
    rows = rows_of("msrvtt", {"test.csv": text.replace("\n", "\r\n")})
    assert [(row["video"], row["caption"], row["key"]) for row in rows] == [
        ("video1", 'a man, in "red"', "ret0"),
        ("video2", 'a 12" ruler', "ret1"),
    ]


def test_msrvtt_training_list_takes_its_captions_from_the_json(rows_of):
    files = {"train.csv": "video_id\nvideo0\n", "MSRVTT_data.json": MSRVTT}
    both = ["a man runs", "a person is running"]
    assert rows_of("msrvtt", files) == [{"video": "video0", "captions": both}]
    assert rows_of.notes == {"videos with captions that are not on the list": 1}
    expanded = rows_of("msrvtt", files, captions="expanded")
    assert expanded == [{"video": "video0", "caption": text} for text in both]


def test_didemo_joins_all_descriptions_in_file_order(rows_of):
    moments = [
        {"video": "1@N00_2_3.mov", "description": "the dog enters ", "times": [[0, 0]]},
        {"video": "5@N00_6_7.3gp", "description": "water", "times": [[0, 0]]},
        {"video": "1@N00_2_3.mov", "description": "the dog leaves", "times": [[1, 2]]},
    ]
    files = {"test_data.json": moments}
    assert rows_of("didemo", files) == [
        {"video": "1@N00_2_3.mov", "caption": "the dog enters the dog leaves"},
        {"video": "5@N00_6_7.3gp", "caption": "water"},
    ]
    listed = files | {"test_list.txt": "5@N00_6_7.mp4\n"}
    assert rows_of("didemo", listed, extension="drop") == [
        {"video": "5@N00_6_7", "caption": "water"}
    ]
    assert rows_of("didemo", listed) == [{"video": "5@N00_6_7.3gp", "caption": "water"}]


def test_didemo_videos_that_differ_in_their_extension_stay_apart(rows_of):
    moments = [{"video": f"a.{e}", "description": e} for e in ("mov", "mp4")]
    files = {"test_data.json": moments, "test_list.txt": "a.mov\na.mp4\n"}
    assert rows_of("didemo", files) == [
        {"video": "a.mov", "caption": "mov"},
        {"video": "a.mp4", "caption": "mp4"},
    ]


def test_lsmdc_keeps_quotes_and_joins_repeated_clips(rows_of):
    text = LSMDC_ROW.format('"SOMEONE" says, hello') + LSMDC_ROW.format("SOMEONE leaves.")
    assert rows_of("lsmdc", {"list.csv": text.replace("\n", "\r\n")}) == [
        {
            "video": "1_A_00.00.51.926-00.00.54.129",
            "captions": ['"SOMEONE" says, hello', "SOMEONE leaves."],
        }
    ]
    assert sum(rows_of.notes.values()) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_msvd_reads_every_protocol_of_pickle(rows_of, protocol):
    stored = {f"vid{n}": [["a", "man", f"w{n}"], ["a", "man"]] for n in range(300)}
    files = {"raw-captions.pkl": pickle.dumps(stored, protocol=protocol)}
    rows = rows_of("msvd", files)
    assert len(rows) == 300
    assert rows[7] == {"video": "vid7", "captions": ["a man w7", "a man"]}
    listed = rows_of("msvd", files | {"test_list.txt": "vid9\nvid3\n"}, captions="expanded")
    assert [row["video"] for row in listed] == ["vid9", "vid9", "vid3", "vid3"]


def test_activitynet_paragraphs_and_segments(rows_of):
    files = {"val_1.json": ANET}
    name = "v_-abcdefghij"
    assert rows_of("activitynet-captions", files) == [
        {"video": name, "caption": "A man sits. He stands up."}
    ]
    listed = files | {"ids.json": ["-abcdefghij"]}
    assert rows_of("activitynet-captions", listed, prefix="drop")[0]["video"] == "-abcdefghij"
    bare = {"val_1.json": {"-abcdefghij": ANET[name]}, "ids.txt": f"{name}\n"}
    assert rows_of("activitynet-captions", bare, prefix="add")[0]["video"] == name
    assert rows_of("activitynet-captions", files, captions="segments") == [
        {"video": name, "caption": "A man sits.", "start": 0.5, "end": 9.5},
        {"video": name, "caption": "He stands up.", "start": 8.0, "end": 20.0},
    ]


def test_vatex_ids_that_begin_with_a_dash(rows_of):
    clip = "-Ab_cdEfgh1_000010_000020"
    files = {"vatex.json": VATEX}
    assert rows_of("vatex", files) == [{"video": clip, "captions": ["a dog", "a big dog"]}]
    assert rows_of("vatex", files, videos="whole", language="zh") == [
        {"video": "-Ab_cdEfgh1", "captions": ["狗"], "start": 10.0, "end": 20.0}
    ]
    assert rows_of("vatex", files | {"ids.txt": f"{clip}\n"}, captions="expanded")[1] == {
        "video": clip,
        "caption": "a big dog",
    }


# What is refused, with its place


def _anet(**changed):
    return {"val.json": {"v_a": {**ANET["v_-abcdefghij"], **changed}}}


SEGMENTS = {"captions": "segments"}
REFUSED = {
    "msrvtt repeated id": (
        "msrvtt",
        {"t.csv": HEAD + "r,m,v1,a\nr,m,v1,b\n"},
        {},
        "line 3, field 'video_id': 'v1' repeats",
    ),
    "msrvtt empty caption": (
        "msrvtt",
        {"t.csv": HEAD + "r,m,v1, \n"},
        {},
        "line 2, field 'sentence': is empty",
    ),
    "msrvtt tabs under the header's commas": (
        "msrvtt",
        {"t.csv": HEAD + "r\tm\tv1\ta dog\n"},
        {},
        "line 2: expected 4 columns and found 1",
    ),
    "msrvtt unquoted comma": (
        "msrvtt",
        {"t.csv": HEAD + "r,m,v1,a dog, a cat\n"},
        {},
        "line 2: expected 4 columns and found 5",
    ),
    "msrvtt open quote": (
        "msrvtt",
        {"t.csv": HEAD + 'r,m,v1,"a dog\n'},
        {},
        "line 2: a field begins with a quote that is never closed",
    ),
    "msrvtt list of ids as test list": (
        "msrvtt",
        {"t.csv": "video_id\nv1\n"},
        {},
        "line 1: no column 'sentence'",
    ),
    "msrvtt list whose captions would be replaced": (
        "msrvtt",
        {"t.csv": HEAD + "r,m,video0,a dog\n", "d.json": MSRVTT},
        {},
        "the list has captions of its own",
    ),
    "didemo two videos that would become one": (
        "didemo",
        {"d.json": [{"video": f"a.{e}", "description": "x"} for e in ("mov", "mp4")]},
        {"extension": "drop"},
        "[1], field 'video': 'a.mp4' and 'a.mov' differ only in their extension",
    ),
    "didemo listed twice under two extensions": (
        "didemo",
        {"d.json": [{"video": "a.mov", "description": "x"}], "l.txt": "a.mov\na.mp4\n"},
        {},
        "line 2: 'a.mov' repeats",
    ),
    "activitynet listed with and without prefix": (
        "activitynet-captions",
        {"v.json": ANET, "ids.txt": "v_-abcdefghij\n-abcdefghij\n"},
        {},
        "id 2: '-abcdefghij' repeats",
    ),
    "msrvtt empty list": ("msrvtt", {"t.csv": "\n\n"}, {}, "no rows"),
    "msrvtt listed video without caption": (
        "msrvtt",
        {"t.csv": "video_id\nvideo0\nvideo7\n", "d.json": MSRVTT},
        {},
        "line 3, field 'video_id': 'video7' has no caption in",
    ),
    "msrvtt caption of an unknown video": (
        "msrvtt",
        {"d.json": {"videos": [], "sentences": [{"video_id": "v9", "caption": "a"}]}},
        {},
        r"sentences[0], field 'video_id': 'v9' is not among the videos",
    ),
    "msrvtt caption that is no text": (
        "msrvtt",
        {
            "d.json": {
                "videos": [{"video_id": "v"}],
                "sentences": [{"video_id": "v", "caption": None}],
            }
        },
        {},
        "sentences[0], field 'caption': expected a text, found null",
    ),
    "msrvtt duplicate key": (
        "msrvtt",
        {"d.json": '{"videos": [],\n"sentences": [\n{"caption": "}", "caption": "b"}]}'},
        {},
        "line 3: the key 'caption' appears twice in one object",
    ),
    "msrvtt NaN": (
        "msrvtt",
        {"d.json": '{"videos": ["NaN"],\n"sentences": NaN}'},
        {},
        "line 2: NaN is not a JSON number",
    ),
    "msrvtt truncated json": (
        "msrvtt",
        {"d.json": '{"videos": [],\n"sent'},
        {},
        "line 2: not valid JSON",
    ),
    "didemo without description": (
        "didemo",
        {"d.json": [{"video": "a.mov"}]},
        {},
        "[0]: no field 'description'; it has: video",
    ),
    "didemo repeated id in the list": (
        "didemo",
        {"d.json": [{"video": "a.mov", "description": "x"}], "l.txt": "a.mov\na.mov\n"},
        {},
        "line 2: 'a.mov' repeats",
    ),
    "didemo empty list": ("didemo", {"d.json": [], "l.txt": " \n"}, {}, "l.txt: no ids"),
    "lsmdc commas": (
        "lsmdc",
        {"l.csv": "a,b,c,d,e,f\n"},
        {},
        "line 1: expected 6 columns separated by tabs and found 1",
    ),
    "lsmdc empty sentence": (
        "lsmdc",
        {"l.csv": LSMDC_ROW.format("x") + LSMDC_ROW.format(" ")},
        {},
        "line 2, field 'sentence': is empty",
    ),
    "msvd listed video without caption": (
        "msvd",
        {"c.pkl": _captions("a b"), "l.txt": "vid1\n\nvid2\n"},
        {},
        "line 3: 'vid2' has no caption in",
    ),
    "msvd words that are numbers": (
        "msvd",
        {"c.pkl": pickle.dumps({"v": [["a"], [1]]})},
        {},
        "['v'][1]: expected a list of words, found [1]",
    ),
    "activitynet counts": (
        "activitynet-captions",
        _anet(timestamps=[[0, 1]]),
        SEGMENTS,
        "'v_a', field 'timestamps': 1 for 2 sentences",
    ),
    "activitynet end before start": (
        "activitynet-captions",
        _anet(timestamps=[[0, 1], [5, 5]]),
        SEGMENTS,
        "'v_a', field 'timestamps'[1]: [5, 5] ends before it begins",
    ),
    "activitynet negative": (
        "activitynet-captions",
        _anet(timestamps=[[-1, 1], [5, 6]]),
        SEGMENTS,
        "field 'timestamps'[0]: [-1, 1] begins before 0",
    ),
    "activitynet beyond": (
        "activitynet-captions",
        _anet(timestamps=[[0, 1], [5, 26]]),
        SEGMENTS,
        "field 'timestamps'[1]: [5, 26] ends beyond the video of 20 s",
    ),
    "activitynet duplicate": (
        "activitynet-captions",
        _anet(timestamps=[[0, 1], [0, 1]], sentences=["a", "a"]),
        SEGMENTS,
        "field 'timestamps'[1]: [0, 1] repeats an earlier segment",
    ),
    "activitynet both prefixes": (
        "activitynet-captions",
        {"v.json": {"v_a": ANET["v_-abcdefghij"], "a": ANET["v_-abcdefghij"]}},
        {},
        "'a': is there with and without 'v_'",
    ),
    "activitynet unknown id": (
        "activitynet-captions",
        {"v.json": ANET, "ids.json": ["v_-abcdefghij", "v_b"]},
        {},
        "id 2: 'b' has no caption in",
    ),
    "activitynet infinite duration": (
        "activitynet-captions",
        {"v.json": '{"v_a":\n{"duration": Infinity}}'},
        {},
        "line 2: Infinity is not a JSON number",
    ),
    "vatex id without times": (
        "vatex",
        {"v.json": [{"videoID": "abcdefghijk", "enCap": ["a"]}]},
        {},
        "[0], field 'videoID': expected eleven characters",
    ),
    "vatex id whose end is before its start": (
        "vatex",
        {"v.json": [{"videoID": "abcdefghijk_000020_000010", "enCap": ["a"]}]},
        {},
        "[0], field 'videoID'",
    ),
    "vatex repeated id": ("vatex", {"v.json": VATEX * 2}, {}, "[1], field 'videoID'"),
    "vatex without English": (
        "vatex",
        {"v.json": [{"videoID": "abcdefghijk_000010_000020", "chCap": ["a"]}]},
        {},
        "[0]: no field 'enCap'",
    ),
    "unknown value of an option": (
        "vatex",
        {"v.json": VATEX},
        {"language": "fr"},
        "option language=fr: give one of en, zh",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(case, rows_of):
    name, contents, options, message = REFUSED[case]
    with pytest.raises(ListFormatError) as error:
        rows_of(name, contents, **options)
    assert message in str(error.value)
    assert next(iter(contents)) in str(error.value) or "option" in message or len(contents) > 1


def test_invalid_segments_are_left_out_and_counted_on_request(rows_of):
    files = _anet(timestamps=[[0, 1], [5, 26]])
    rows = rows_of("activitynet-captions", files, captions="segments", invalid="skip")
    assert [row["end"] for row in rows] == [1.0]
    assert rows_of.notes == {"segments left out as invalid": 1}


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(HEAD.encode() + b"r,m,v1,caf\xe9\n")
    with pytest.raises(ListFormatError, match="line 2, byte 0xe9"):
        list(reader_of("msrvtt")([str(path)], {}))
