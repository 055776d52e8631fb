"""The report: rows are measured on the same clips, and say what is in the bytes."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.measure import (
    H264Coding,
    JpegCoding,
    MeasuredCoding,
    PaletteCoding,
    measure,
)
from svilm_fast.data.compress.report import _clips as report_clips
from svilm_fast.data.compress.report import codings, page, write_report
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import DecodedClip
from svilm_fast.data.errors import DataError
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.samples import open_split
from svilm_fast.data.timeline import Timeline

HOW = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 16, 200, 0)


@pytest.fixture(scope="module")
def clips():
    """Two clips of 4 frames of 32 pixels: a gradient with ten levels of each colour, and noise."""
    random = np.random.default_rng(0)
    levels = np.linspace(0, 250, 32).astype(np.uint8) // 25 * 25
    smooth = np.broadcast_to(levels[None, None, :, None], (4, 32, 32, 3)).copy()
    noise = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    made = []
    for frames in (smooth, noise):
        index = np.arange(4, dtype=np.int64)
        made.append(DecodedClip(frames, index, Timeline(4, None, 1.0), 1.0, (32, 32)))
    return made


def test_rows_say_what_the_bytes_hold(clips):
    rows = measure(
        [PaletteCoding("4-bit", HOW, PixelBlock(1, 1, 1)), JpegCoding(90), H264Coding()],
        clips[:1],
        rounds=2,
    )
    palette, jpeg, h264 = rows
    assert math.isinf(palette.psnr)  # ten colours fit into sixteen entries
    size = len(JpegCoding(90).encode(clips[0], 0))
    assert jpeg.bytes == size
    assert jpeg.factor == 4 * 32 * 32 * 3 / size
    decoded = JpegCoding(90).decode(JpegCoding(90).encode(clips[0], 0))
    error = np.mean((decoded.astype(float) - clips[0].frames) ** 2)
    assert jpeg.psnr == pytest.approx(10 * math.log10(255**2 / error))
    assert palette.bytes > 4 * 32 * 32 / 2  # half a byte for each code
    assert palette.zlib_bytes < palette.bytes
    assert h264.psnr > 25
    assert len(palette.ratios) == 2
    assert jpeg.gather_s is None


def test_palettes_that_clips_share_count_once(clips):
    block = PixelBlock(2, 2, 2)
    own = PaletteCoding("own", HOW, block)
    common = PaletteCoding("shared", HOW, block, 1)
    noise = [clips[1], clips[1]]
    found = measure([own, common], noise, rounds=1)
    assert found[1].bytes < found[0].bytes
    assert found[1].bytes > sum(len(common.encode(clip, 0)) for clip in noise) + 384


def test_the_table_has_every_method_scope_and_both_codecs():
    names = " ".join(coding.name for coding in codings(2, 50, KMeansEngine.SKLEARN, 0))
    words = ("8-bit colours", "2-bit", "patches 4x4", "blocks 2x2x2", "cluster", "shard")
    for word in (*words, "gmm", "agglomerative", "dbscan", "JPEG, quality 75", "H.264"):
        assert word in names


def test_encoding_is_timed_in_every_round_and_has_its_part_of_shared_palettes(clips, monkeypatch):
    clock = iter(range(1, 10**6))
    monkeypatch.setattr(time, "process_time", lambda: next(clock))  # every call takes 1 s
    calls = []
    coding = JpegCoding(90)
    monkeypatch.setattr(
        coding, "encode", lambda *a: calls.append(1) or JpegCoding.encode(coding, *a)
    )
    jpeg, shared = measure([coding, PaletteCoding("s", HOW, PixelBlock(1, 1, 1), 1)], clips, 3)
    assert len(calls) == 2 * (1 + 3)
    # Half a second of the search for what two clips share.
    assert jpeg.encode_s == shared.encode_s == 1.5


def test_a_clip_that_cannot_be_measured_is_listed(make_shards, tmp_path):
    source = make_shards(2, replace={1: {"mp4": b"no video" * 9}})
    config = DataConfig(train=str(source), captions="none")
    names, looked, refused = report_clips(open_split(config, "train"), [0, 1], config, 4, 32)
    assert (names, len(looked)) == (["s0000"], 1)
    assert [skip.sample for skip in refused] == ["s0001"]
    facts = {"clips": names, "refused": [vars(refused[0])], "shapes": [[4, 32, 32, 3]], "sample": 9}
    assert any(line.startswith("Not measured: s0001: ") for line in page([], facts))
    with pytest.raises(DataError, match="no clip can be measured; s0001: "):
        report_clips(open_split(config, "train"), [1], config, 4, 32)


def test_a_coding_without_an_error_is_valid_json():
    row = MeasuredCoding("all", bytes=1, values=3)
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["psnr"] is None


@pytest.mark.slow
def test_the_command_writes_page_data_and_picture_and_replaces_only_its_own(make_shards, tmp_path):
    folder = tmp_path / "report"
    settings = {
        "videos": None,
        "clips": 2,
        "frames": 4,
        "short_side": 32,
        "sample": 60,
        "engine": KMeansEngine.SKLEARN,
        "seed": 0,
    }
    lines = write_report(str(make_shards(2)), folder, **settings)
    rows = json.loads((folder / "compression.json").read_text())["rows"]
    assert len(rows) == 16
    assert sum(line.startswith("| JPEG") for line in lines) == 2
    assert (folder / "compression.png").read_bytes().startswith(b"\x89PNG")
    write_report(str(make_shards(2)), folder, **settings)
    (folder / "compression.md").write_text("mine")
    with pytest.raises(DataError, match=r"compression\.md exists"):
        write_report(str(make_shards(2)), folder, **settings)
