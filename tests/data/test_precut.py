"""`--precut`: clips hold the video's frames, in time and size, with key frames where wanted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest

from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.errors import DataError
from svilm_fast.data.pack import pack
from svilm_fast.data.precut import Precut, cut_video, encode_clip
from svilm_fast.data.samples import open_split


def _levels(data):
    """The grey level of every frame, and its time in seconds."""
    clip = decode_clip(data, every_frame)
    levels = clip.frames.mean(axis=(1, 2, 3))
    edges = clip.timeline.edges
    return levels, clip.timeline.period if edges is None else edges - edges[0]


def _cut(data, segment=None, **settings):
    precut = Precut(**{"short_side": 32, "crf": 10, **settings})
    return cut_video(data, segment, precut, LimitsConfig())


def test_every_frame_is_in_one_clip_at_its_time(make_video, make_ramp):
    clips, dropped = _cut(make_video(make_ramp(15)), clip_seconds=0.5)  # 8 frames a second
    assert [(clip.first, clip.frames) for clip in clips] == [(0, 4), (4, 4), (8, 4), (12, 3)]
    assert dropped == 0
    assert [clip.start for clip in clips] == pytest.approx([0, 0.5, 1.0, 1.5], abs=1e-3)
    for clip in clips:
        levels, period = _levels(clip.data)
        assert levels == pytest.approx(
            16.0 * np.arange(clip.first, clip.first + clip.frames), abs=4
        )
        assert period == pytest.approx(0.125, abs=1e-4)


def test_a_short_remainder_is_left_out_and_a_short_video_is_one_clip(make_video, make_ramp):
    clips, dropped = _cut(make_video(make_ramp(9)), clip_seconds=0.5)
    assert [clip.frames for clip in clips] == [4, 4]
    assert dropped == pytest.approx(0.125, abs=1e-3)
    clips, dropped = _cut(make_video(make_ramp(9)), clip_seconds=30.0)
    assert [(clip.frames, clip.end) for clip in clips] == [(9, pytest.approx(1.125, abs=1e-3))]
    assert dropped == 0


def test_a_segment_is_cut_within_its_bounds(make_video, make_ramp):
    clips, _ = _cut(make_video(make_ramp(16)), (0.5, 1.5), clip_seconds=0.5)
    assert [(clip.first, clip.frames, clip.start) for clip in clips] == [
        (0, 4, pytest.approx(0.5, abs=1e-3)),
        (4, 4, pytest.approx(1.0, abs=1e-3)),
    ]
    assert _levels(clips[1].data)[0] == pytest.approx(16.0 * np.arange(8, 12), abs=4)


def test_times_of_a_variable_rate_stay(make_ramp):
    edges = np.array([0, 0.1, 0.2, 1.0, 1.1, 2.0])
    data = encode_clip(make_ramp(5), edges, Precut(crf=10))
    levels, times = _levels(data)
    assert times == pytest.approx(edges, abs=1e-3)
    clips, _ = _cut(data, clip_seconds=1.0)
    assert [clip.frames for clip in clips] == [3, 2]
    assert _levels(clips[1].data)[0] == pytest.approx(levels[3:], abs=4)
    assert clips[0].end == clips[1].start == pytest.approx(1.0, abs=1e-3)


def test_key_frames_size_and_streams(make_video, make_ramp):
    video = make_video(make_ramp(16, height=64, width=90))
    clips, _ = _cut(video, clip_seconds=2.0, key_frame_seconds=0.5)
    assert clips[0].size == (44, 32)  # 45 wide: an even width holds whole colour samples
    with av.open(io.BytesIO(clips[0].data)) as opened:
        assert [(s.type, s.codec_context.name) for s in opened.streams] == [("video", "h264")]
        packets = [p for p in opened.demux(video=0) if p.size]
        shown = sorted(p.pts for p in packets)
        keys = [shown.index(p.pts) for p in packets if p.is_keyframe]
        assert keys == [0, 4, 8, 12]


@pytest.mark.slow
def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path, make_video, make_ramp):
    """x264 reads memory that it has not written where mbtree is on."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (16, 26, 3)).astype(float)
    wide = np.kron(coarse, np.ones((8, 8, 1)))
    noise = rng.normal(0, 4, (10, 128, 170, 3))
    moving = np.stack([wide[:, 2 * place : 2 * place + 170] for place in range(10)])
    frames = (moving + noise).clip(0, 255).astype(np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    program = (
        "import hashlib, sys, numpy as np\n"
        "from svilm_fast.data.precut import Precut, encode_clip\n"
        "data = encode_clip(np.load(sys.argv[1]), np.arange(11) / 5, Precut())\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "frames.npy")]
    answers = {
        subprocess.run(
            command,
            env={**os.environ, "MALLOC_PERTURB_": value},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for value in ("1", "170")
    }
    assert len(answers) == 1


def test_packed_clips_keep_captions_boxes_masks_and_events(tmp_path, make_video, make_ramp):
    (tmp_path / "a.mp4").write_bytes(make_video(make_ramp(8, height=64, width=80)))
    row = {
        "video": "a.mp4",
        "caption": ["A dog.", "It runs."],
        "width": 80,
        "mood": "calm",
        "objects": [{"shape": "dog", "boxes": [[2 * f, 0, 40, 64] for f in range(7)] + [None]}],
        "masks": [[[0, 80 * f]] for f in range(8)],  # f rows from the top
        "events": [
            {"label": "runs", "start_s": 0.25, "end_s": 0.75},
            {"label": "sits", "start_s": 0.75, "end_s": 1.0},
        ],
    }
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    precut = Precut(clip_seconds=0.5, short_side=32)
    report = pack(str(tmp_path / "list.jsonl"), tmp_path / "out", precut=precut)
    assert (report.written, report.captions, report.frames) == (2, 4, 8)
    before = (tmp_path / "a.mp4").stat().st_size
    assert report.source_bytes == before
    assert f"cut: {before / 1e6:.1f} MB of videos before" in report.lines()[1]

    table = open_split(DataConfig(train=str(tmp_path / "out")), "train")
    assert [table.read_metadata(n)["id"] for n in (0, 1)] == ["a_c000", "a_c001"]
    second = table.read_metadata(1)
    assert second["caption"] == ["A dog.", "It runs."]
    assert second["mood"] == "calm"
    assert (second["width"], second["height"], second["num_frames"]) == (40, 32, 4)
    assert second["fps"] == pytest.approx(8.0, abs=0.01)
    assert second["objects"][0]["boxes"] == [
        [4, 0, 20, 32],
        [5, 0, 20, 32],
        [6, 0, 20, 32],
        None,
    ]
    assert second["masks"][2] == [[0, 40 * 3]]
    assert [(e["label"], e["start_s"], e["end_s"]) for e in second["events"]] == [
        ("runs", 0.0, pytest.approx(0.25, abs=1e-3)),
        ("sits", pytest.approx(0.25, abs=1e-3), pytest.approx(0.5, abs=1e-3)),
    ]
    source = second["source"]
    assert (source["id"], source["width"], source["height"]) == ("a", 80, 64)
    assert (source["start"], source["end"]) == pytest.approx((0.5, 1.0), abs=1e-3)


def test_cut_shards_are_equal_and_bad_videos_are_refused(tmp_path, make_video, make_ramp):
    whole = make_video(make_ramp(16), movflags="faststart")
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(whole)
    (tmp_path / "c.mp4").write_bytes(whole[: int(0.7 * len(whole))])
    rows = [{"video": f"{n}.mp4", "caption": "a dog"} for n in "abc"]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = []
    for out in (tmp_path / "one", tmp_path / "two"):
        report = pack(
            str(tmp_path / "list.jsonl"), out, precut=Precut(clip_seconds=1.0, short_side=32)
        )
        assert [(skip.sample, skip.reason) for skip in report.refused] == [
            ("c.mp4", "truncated video")
        ]
        assert report.written == 4
        content.append({path.name: path.read_bytes() for path in out.glob("shard-*")})
    assert content[0] == content[1]


def test_settings_are_checked():
    wrong: list[dict] = [
        {"clip_seconds": 0},
        {"key_frame_seconds": -1.0},
        {"short_side": 33},
        {"crf": 52},
    ]
    for settings in wrong:
        with pytest.raises(DataError):
            Precut(**settings)
