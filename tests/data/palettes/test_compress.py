"""`svilm data compress`: ordinary shards, equal bytes however it ran, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from svilm_fast.data.compress import shard as shard_module
from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method
from svilm_fast.data.compress.run import compress
from svilm_fast.data.compress.shard import CompressSettings, Scope
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import DataError, PaletteError
from svilm_fast.data.offline.outputs import OfflineError
from svilm_fast.data.palettes.format import PixelBlock, read_clip
from svilm_fast.data.samples import open_split
from svilm_fast.data.sampling import FrameChoice

HOW = Clustering(Method.KMEANS, KMeansEngine.SKLEARN, 16, 500, 0)
SETTINGS = CompressSettings(HOW, PixelBlock(1, 1, 1), Scope.CLIP, 32, 32, 2)


def table_of(folder):
    return open_split(DataConfig(train=str(folder), captions="none"), "train")


def content(folder):
    left = "compress_manifest.jsonl"
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != left}


@pytest.mark.parametrize("scope", list(Scope))
def test_samples_stay_and_their_frames_are_those_of_the_video(make_shards, tmp_path, scope):
    source = make_shards(7)
    report = compress(str(source), tmp_path / "out", replace(SETTINGS, scope=scope), workers=1)
    assert report.clips == 7
    assert report.frames == 7 * 12
    before, after = table_of(source), table_of(tmp_path / "out")
    assert list(after.ids) == list(before.ids)
    assert not after.rejected
    assert after.read_metadata(6)["caption"] == before.read_metadata(6)["caption"]
    for place in (0, 6):
        video = decode_clip(before.read_video(place), every_frame)
        clip = decode_limited(after.read_video(place), every_frame)
        assert clip.timeline.total == 12
        assert np.array_equal(clip.index, video.index)
        # Twelve levels of grey, and the noise of the codec around them.
        assert np.abs(clip.frames.astype(int) - video.frames).max() < (8 if scope == "clip" else 24)
    assert report.psnr > 35


@pytest.mark.slow
def test_equal_bytes_for_any_number_of_workers(make_shards, tmp_path):
    source = str(make_shards(12))
    settings = replace(SETTINGS, scope=Scope.CLUSTER)
    for name, workers in (("one", 1), ("two", 2)):
        compress(source, tmp_path / name, settings, workers=workers)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_work_that_failed_continues_with_equal_bytes(make_shards, tmp_path, monkeypatch):
    source = str(make_shards(7))
    settings = replace(SETTINGS, scope=Scope.CLUSTER)
    compress(source, tmp_path / "one", settings, workers=1)
    written = shard_module.ShardFile.add
    calls = []

    def failing(self, key, members):
        calls.append(key)
        if len(calls) == 9:  # of five clips and two, and a member of palettes in both
            raise OSError("disk full")
        written(self, key, members)

    monkeypatch.setattr(shard_module.ShardFile, "add", failing)
    with pytest.raises(OSError, match="disk full"):
        compress(source, tmp_path / "again", settings, workers=1)
    monkeypatch.setattr(shard_module.ShardFile, "add", written)
    (finished,) = (tmp_path / "again").glob("*.tar")
    first = finished.stat().st_ino
    compress(source, tmp_path / "again", settings, workers=1)
    assert finished.stat().st_ino == first
    assert content(tmp_path / "again") == content(tmp_path / "one")
    with pytest.raises(OfflineError, match="scope="):
        compress(source, tmp_path / "again", SETTINGS, workers=1)


def test_what_cannot_be_decoded_is_refused_and_listed(make_shards, tmp_path):
    source = make_shards(5, replace={1: {"mp4": b"no video" * 9}})
    for scope in (Scope.CLIP, Scope.SHARD):
        out = tmp_path / scope
        report = compress(str(source), out, replace(SETTINGS, scope=scope), workers=1)
        assert [skip.sample for skip in report.refused] == ["s0001"]
        assert list(table_of(out).ids) == ["s0000", "s0002", "s0003", "s0004"]
        assert json.loads((out / "compress_report.json").read_text())["clips"] == 4
    with pytest.raises(DataError, match="compressed already"):
        compress(str(tmp_path / "clip"), tmp_path / "twice", SETTINGS, workers=1)


def test_a_shard_without_a_usable_sample_does_not_stop_the_others(make_shards, tmp_path):
    source = make_shards(7, replace={i: {"json": b"no json"} for i in (5, 6)})  # five in the first
    assert len(list(source.glob("*.tar"))) == 2
    for scope in Scope:
        report = compress(str(source), tmp_path / scope, replace(SETTINGS, scope=scope), workers=1)
        assert (report.clips, len(report.refused)) == (5, 2)


def test_folders_and_reports_of_others_are_left_alone(make_shards, tmp_path):
    source = make_shards(3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "theirs.tar").write_bytes(b"")
    with pytest.raises(DataError, match="already holds shards"):
        compress(str(source), out, SETTINGS, workers=1)
    (out / "theirs.tar").rename(tmp_path / "theirs.tar")
    (out / "compress_report.json").write_text("mine")
    with pytest.raises(DataError, match=r"compress_report\.json exists"):
        compress(str(source), out, SETTINGS, workers=1)
    assert (out / "compress_report.json").read_text() == "mine"


def test_a_segment_of_a_list_becomes_a_clip_of_its_own(videos, tmp_path):
    (tmp_path / "a.mp4").write_bytes(videos[0])
    rows = [
        {
            "video": "a.mp4",
            "caption": "A cup.",
            "start": 0.5,
            "end": 1.0,
            "label": "cup",
            "source": "web",
        },
        {"video": "a.mp4", "caption": "A dog."},
    ]
    rows[0]["source"] = "web"
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    compress(str(tmp_path / "list.jsonl"), tmp_path / "out", replace(SETTINGS, frames=6), workers=1)
    table = table_of(tmp_path / "out")
    assert table.segment(0) is None
    assert table.label(0) == "cup"
    assert table.read_metadata(0)["source"] == {"name": "web", "segment": [0.5, 1.0]}
    part, whole = (read_clip(table.read_video(place)) for place in (0, 1))
    assert part.index.tolist() == [4, 5, 6, 7]  # 8 frames a second
    assert whole.index.tolist() == [1, 3, 5, 7, 9, 11]
    assert whole.timeline.edges == pytest.approx([0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.5])
    chosen = decode_limited(table.read_video(1), FrameChoice(3, None))
    assert chosen.index.tolist() == [1, 5, 9]


def test_damage_names_shard_and_sample(make_shards, tmp_path):
    source, out = make_shards(3), tmp_path / "out"
    compress(str(source), out, replace(SETTINGS, scope=Scope.SHARD), workers=1)
    shard = out / "shard-000000.tar"
    data = shard.read_bytes()
    table = table_of(out)
    place = data.index(b"SVILMSHR")
    shard.write_bytes(data[: place + 60] + b"!" + data[place + 61 :])
    with pytest.raises(PaletteError, match=r"s0001 in shard-000000\.tar: .*(checksum|header)"):
        table_of(out).read_video(1)
    place = data.index(b"SVILMPAL")
    shard.write_bytes(data[: place + 400] + b"!" + data[place + 401 :])
    with pytest.raises(DataError, match=r"s0000.*shard-000000\.tar"):
        table.read_video(0)
    head = bytearray(data[:512].replace(b"__palettes__.shared", b"__palettez__.shared"))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)  # tar's own checksum of the changed name
    shard.write_bytes(bytes(head) + data[512:])
    with pytest.raises(DataError, match=r"s0000 in shard-000000\.tar.*__palettez__"):
        table_of(out).read_video(0)
