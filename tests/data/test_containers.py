"""Every allowed kind of file is recognised by content, found in lists and folders, and decoded."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import numpy as np
import pytest

from svilm_fast.data.config import DataConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS, sniff
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.decode import decode_clip, every_frame
from svilm_fast.data.errors import MissingFileError, VideoError
from svilm_fast.data.lists import VideoFolder
from svilm_fast.data.pack import pack
from svilm_fast.data.samples import open_split

# extension: FFmpeg's muxer, encoder, demuxer
KINDS = {
    "mp4": ("mp4", "libx264", "mov"),
    "mov": ("mov", "mjpeg", "mov"),
    "m4v": ("mp4", "mpeg4", "mov"),
    "3gp": ("3gp", "h263", "mov"),
    "webm": ("webm", "libvpx", "matroska"),
    "mkv": ("matroska", "libx264", "matroska"),
    "avi": ("avi", "mpeg4", "avi"),
    "wmv": ("asf", "wmv2", "asf"),
    "flv": ("flv", "flv", "flv"),
    "mpg": ("mpeg", "mpeg1video", "mpeg"),
    "vob": ("vob", "mpeg2video", "mpeg"),
    "ts": ("mpegts", "libx264", "mpegts"),
    "m2v": ("mpeg2video", "mpeg2video", "mpegvideo"),
    "gif": ("gif", "gif", "gif"),
}


@pytest.fixture(scope="module")
def files(odd):
    """One grey film of eight frames per kind."""
    levels = np.repeat(np.arange(8) * 30, 3).reshape(8, 1, 1, 3)
    frames = np.broadcast_to(levels, (8, 144, 176, 3)).astype(np.uint8)
    formats = {"gif": "gray", "mjpeg": "yuvj420p"}
    return {
        extension: odd.encode(
            # H.263 takes pixels of 12:11 where nothing is said
            frames,
            muxer,
            codec,
            aspect=Fraction(1),
            pix_fmt=formats.get(codec, "yuv420p"),
        )
        for extension, (muxer, codec, _) in KINDS.items()
    }


@pytest.mark.parametrize("extension", KINDS)
def test_every_kind_is_recognised_and_decoded(files, extension):
    container = sniff(files[extension])
    assert container is not None
    assert container.demuxer == KINDS[extension][2]
    assert extension in container.extensions
    assert extension in VIDEO_EXTENSIONS
    clip = decode_clip(files[extension], every_frame)
    assert (clip.total, clip.source_size) == (8, (176, 144))
    levels = clip.frames[:, 16:-16, 16:-16].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, np.arange(8) * 30, atol=8)


def test_a_transport_stream_may_begin_inside_a_packet(files):
    data = files["ts"][100:]
    assert sniff(data).demuxer == "mpegts"
    bluray = b"".join(
        bytes(4) + files["ts"][at : at + 188] for at in range(0, len(files["ts"]), 188)
    )
    assert decode_clip(bluray, every_frame).total == 8


def test_other_content_is_recognised_as_nothing():
    for data in (b"", b"G" * 3, b"RIFF\0\0\0\0WAVEfmt ", b"\x89PNG\r\n\x1a\n", b"ID3\3" * 400):
        assert sniff(data) is None


def test_codecs_outside_the_list_are_refused_by_name(odd):
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    data = odd.encode(frames, "avi", "zmbv", pix_fmt="bgr0")
    with pytest.raises(VideoError, match="codec 'zmbv' is not allowed"):
        decode_clip(data, every_frame)


@pytest.fixture
def many(files, tmp_path):
    """A folder of all kinds, with films below it and files that are none."""
    folder = tmp_path / "videos"
    (folder / "below" / "deep").mkdir(parents=True)
    for extension, data in files.items():
        (folder / f"v_{extension}.{extension}").write_bytes(data)
        (folder / f"v_{extension}.txt").write_text(f"A red {extension}.")
    (folder / "LOUD.MPG").write_bytes(files["mpg"])
    (folder / "LOUD.txt").write_text("A loud film.")
    for name in ("below/one", "below/deep/two", "below/twin", "below/deep/twin"):
        (folder / f"{name}.mp4").write_bytes(files["mp4"])
        (folder / f"{name}.txt").write_text("A blue cat.")
    (folder / "camera.dat").write_bytes(files["mpg"])
    (folder / "below" / "notes.md").write_text("nothing")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


def test_a_folder_is_packed_with_all_kinds_and_folders_below(many, tmp_path):
    report = pack(str(many), tmp_path / "out")
    assert report.refused == []
    assert report.written == len(KINDS) + 5
    assert report.passed_over == ["below/notes.md", "camera.dat"]
    (line,) = (line for line in report.lines() if "without a video extension" in line)
    assert "2 files" in line
    assert "1 x .dat" in line
    assert "below/notes.md, camera.dat" in line
    saved = json.loads((tmp_path / "out" / "pack_report.json").read_text())
    assert saved["passed_over"] == report.passed_over
    config = DataConfig(train=str(tmp_path / "out"), workers=0)
    dataset = ClipDataset(config, "train", prepare_tokenizer(config), frames=4, image_size=24)
    assert len(dataset) == report.written
    assert dataset.batch(range(len(dataset))).frames.shape[0] == report.written


def test_a_list_finds_all_kinds_with_and_without_extension(many, tmp_path):
    names = [f"v_{extension}" for extension in KINDS]
    names += [f"v_{extension}.{extension}" for extension in KINDS]
    names += ["LOUD", "below/one", "one", "two.mp4", "below/twin", "below/deep/twin.mp4"]
    names += ["camera.dat"]
    rows = "".join(json.dumps({"video": name, "caption": "A dog."}) + "\n" for name in names)
    (many / "list.jsonl").write_text(rows)
    table = open_split(DataConfig(train=str(many / "list.jsonl")), "train")
    assert table.rejected == []
    assert [sample.id for sample in table] == names
    report = pack(str(many / "list.jsonl"), tmp_path / "out")
    distinct = len({sample.video for sample in table})  # names of one file are one video
    assert (report.written, report.captions, report.refused) == (distinct, len(names), [])
    assert len(open_split(DataConfig(val=str(tmp_path / "out")), "val")) == distinct == 20


def test_names_that_mean_no_video_or_several_are_refused(many):
    folder = VideoFolder(str(many))
    with pytest.raises(MissingFileError, match="no video 'three'"):
        folder.locate("three")
    with pytest.raises(MissingFileError, match=r"several videos .*below/.*twin.*name the folder"):
        folder.locate("twin")
    with pytest.raises(MissingFileError):
        folder.locate("below")  # a folder is no video
    os.mkfifo(many / "pipe.mp4")
    for name in ("pipe", "pipe.mp4"):
        with pytest.raises(MissingFileError, match="not a regular file"):
            VideoFolder(str(many)).locate(name)


def test_one_name_with_two_extensions_means_the_first_kind(many):
    (many / "v_avi.mp4").write_bytes(b"x")
    assert VideoFolder(str(many)).locate("v_avi").endswith("v_avi.mp4")


def test_folders_of_a_remote_store_are_searched_too(files):
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/films/below/a.mpg", files["mpg"])
    store.pipe("/films/b.mp4", files["mp4"])
    folder = VideoFolder("memory://films")
    assert folder.locate("a").endswith("films/below/a.mpg")
    assert folder.locate("b.mp4").endswith("films/b.mp4")
    store.rm("/films", recursive=True)
