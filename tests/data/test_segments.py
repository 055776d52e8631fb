"""`start` and `end` of a list name a part of the video: its frames, no others, are seen."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.errors import SegmentError
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split
from svilm_fast.data.segments import InSegment, part, segment_of_json, segment_of_row
from svilm_fast.data.timeline import Timeline
from svilm_fast.evaluation.embed import CaptionTable

# The videos of these tests have 12 frames at 8 per second; frame f is grey 16 f + phase.


def _places(timeline: Timeline, segment: tuple[float, float]) -> list[int]:
    return InSegment(every_frame, segment)(timeline).tolist()


@pytest.mark.parametrize(
    ("columns", "segment"),
    [
        ({}, None),
        ({"start": "", "end": None}, None),
        ({"start": 1, "end": 2.5}, (1.0, 2.5)),
        ({"start": "1", "end": " 2.5 "}, (1.0, 2.5)),
        ({"start": "", "end": "3"}, (0.0, 3.0)),
        ({"start": 0.5}, (0.5, math.inf)),
        ({"start_timestamp": "00:01:20.033", "end_timestamp": "1:02:03"}, (80.033, 3723.0)),
        ({"start_time": "01:30", "end_time": "95"}, (90.0, 95.0)),
    ],
)
def test_the_columns_of_a_list(columns, segment):
    found = segment_of_row(columns, "line 2")
    assert found == (None if segment is None else pytest.approx(segment))


@pytest.mark.parametrize(
    "columns",
    [
        {"start": "soon", "end": 2},
        {"start": 2, "end": 1},
        {"start": 1, "end": 1},
        {"start": -1, "end": 1},
        {"start": "nan", "end": 1},
        {"start": 0, "end": "inf"},
        {"start": 0, "end": 10**400},
        {"start": True, "end": 2},
        {"start": [0], "end": 2},
    ],
)
def test_other_values_are_refused_with_the_line(columns):
    with pytest.raises(SegmentError, match="line 2"):
        segment_of_row(columns, "line 2")


@pytest.mark.parametrize(
    "value",
    [[1], [2, 1], "1-2", ["0", "1"], [0, True, 2], {"start": 0}, [True, 2], [10**400, 2], 7],
)
def test_a_malformed_segment_of_a_json_is_refused(value):
    with pytest.raises(SegmentError, match="s-1"):
        segment_of_json({"segment": value}, "s-1")


def test_frames_at_a_constant_rate():
    video = Timeline(100, period=0.04)
    assert _places(video, (0.0, 1.0)) == list(range(25))
    assert _places(video, (1.0, 2.0)) == list(range(25, 50))
    assert _places(video, (1.03, 1.05)) == [25, 26]  # shown from 1.00 and from 1.04 s on
    assert _places(video, (1.05, 1.06)) == [26]
    assert _places(video, (3.9, math.inf)) == [97, 98, 99]
    assert _places(video, (3.9, 4.4)) == [97, 98, 99]  # annotations are rounded
    thirds = Timeline(90, period=1 / 30)
    assert _places(thirds, (1.0, 2.0)) == list(range(30, 60))


def test_frames_at_a_variable_rate():
    # Timestamps need not begin at zero; the times of a segment do.
    video = Timeline(5, np.array([10.0, 10.1, 10.2, 11.0, 12.0, 14.0]))
    assert _places(video, (0.0, 0.2)) == [0, 1]
    assert _places(video, (0.5, 1.5)) == [2, 3]
    assert _places(video, (2.0, 4.0)) == [4]
    first, inside = part(video, (0.5, 1.5))
    assert (first, inside.total) == (2, 2)
    np.testing.assert_allclose(inside.edges, [10.5, 11.0, 11.5])  # equal parts of this time


def test_times_that_the_container_rounds_to_milliseconds():
    video = Timeline(4, np.array([0.0, 0.033, 0.067, 0.1, 0.133]))
    assert _places(video, (2 / 30, 0.1)) == [2]
    assert _places(video, (0.0, 1 / 30)) == [0]


@pytest.mark.parametrize("segment", [(4.0, 5.0), (9.0, math.inf), (3.0, 4.6)])
def test_a_segment_beyond_the_video_is_refused(segment):
    with pytest.raises(SegmentError, match=r"outside the video of 4 s; for a clip that was cut"):
        part(Timeline(100, period=0.04), segment)
    with pytest.raises(SegmentError, match="no timestamps"):
        part(Timeline(100), segment)


def test_decoding_gives_the_frames_of_the_segment(make_video, make_ramp):
    video = make_video(make_ramp(12))
    choose = pickle.loads(pickle.dumps(InSegment(every_frame, (0.5, 1.0))))
    clip = decode_clip(video, choose)
    assert clip.index.tolist() == [4, 5, 6, 7]
    assert clip.total == 12
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), [64, 80, 96, 112], atol=3)


@pytest.fixture
def listed(tmp_path, videos):
    rows = [
        {"video": "a.mp4", "caption": "a red ball", "start": 0.0, "end": 0.5},
        {"video": "a.mp4", "caption": "a green ball", "start": 0.5, "end": 1.5},
        {"video": "a.mp4", "caption": "it is green", "start": 0.5, "end": 1.5},
        {"video": "a.mp4", "caption": "a late ball", "start": 7, "end": 8},
        {"video": "a.mp4", "caption": "no time", "start": "x", "end": 8},
        {"video": "a.mp4", "caption": "all of it"},
    ]
    (tmp_path / "a.mp4").write_bytes(videos[0])
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_segments_are_packed_as_samples_of_their_own(listed):
    report = pack(str(listed / "list.jsonl"), listed / "shards", threads=2)
    assert (report.written, report.captions, report.frames) == (3, 4, 4 + 8 + 12)
    assert [skip.reason for skip in report.refused] == ["bad segment"] * 2
    assert report.refused[0].sample == "a.mp4 from 7 s to 8 s"
    assert "line 5: start='x' is not a time" in report.refused[1].message
    table = open_split(DataConfig(train=str(listed / "shards")), "train")
    assert [(sample.id, sample.captions, sample.segment) for sample in table] == [
        ("a_0-0_5", ("a red ball",), (0.0, 0.5)),
        ("a_0_5-1_5", ("a green ball", "it is green"), (0.5, 1.5)),
        ("a", ("all of it",), None),
    ]
    assert [table.read_metadata(i)["num_frames"] for i in range(3)] == [4, 8, 12]
    assert table.read_metadata(0)["segment"] == [0.0, 0.5]


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_data_set_shows_the_segment_and_nothing_else(listed, packed, cache):
    where = listed / "list.jsonl"
    if packed:
        pack(str(where), listed / "shards")
        where = listed / "shards"
    config = DataConfig(train=str(where), workers=0, cache=cache)
    dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=2, image_size=16)
    shown = {sample.captions[0]: row for row, sample in enumerate(dataset.table)}
    # The middle frames of two equal parts.
    expected = {"a red ball": [1, 3], "a green ball": [6, 10], "all of it": [3, 9]}
    for _ in range(2):  # the second time from the cache
        for caption, frames in expected.items():
            batch = dataset.batch([shown[caption]])
            assert batch.frame_index[0].tolist() == frames
            grey = batch.frames[0].float().mean(dim=(1, 2, 3)).tolist()
            assert grey == pytest.approx([16 * frame for frame in frames], abs=3)


def test_evaluation_takes_segments_for_different_videos(listed):
    pack(str(listed / "list.jsonl"), listed / "shards")
    config = DataConfig(test=str(listed / "list.jsonl"), train=str(listed / "shards"), workers=0)
    dataset = ClipDataset(config, "test", prepare_tokenizer(config), frames=2, image_size=16)
    table = CaptionTable.of(dataset)
    rows = {name: [table.texts[row] for row in rows] for name, rows in table.rows.items()}
    assert list(rows.values()) == [
        ["a red ball"],
        ["a green ball", "it is green"],
        ["a late ball"],
        ["all of it"],
    ]


def test_the_fingerprint_knows_segments(listed):
    def fingerprint(end: float) -> str:
        row = {"video": "a.mp4", "caption": "a ball", "start": 0.0, "end": end}
        (listed / "one.jsonl").write_text(json.dumps(row))
        return open_split(DataConfig(train=str(listed / "one.jsonl")), "train").fingerprint

    assert fingerprint(0.5) == fingerprint(0.5) != fingerprint(1.0)
