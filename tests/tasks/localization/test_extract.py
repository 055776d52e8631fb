"""Feature extraction: which frames a vector sees, resume, broken files, bounded memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import MissingFileError, VideoError
from svilm_fast.data.feature_files import (
    FeatureFileError,
    FeatureFolder,
    FeatureLayout,
    VideoFeatureSequence,
    feature_path,
    parquet_bytes,
    read_parquet,
)
from svilm_fast.data.world.video import encode_mp4
from svilm_fast.tasks.localization.extract import (
    ExtractionSettings,
    extract_folder,
    extract_sequence,
    video_files,
)
from svilm_fast.train.run_app import run_app
from tests.untrained_run import make_untrained_run

pytest.importorskip("pyarrow")


def brightness_video(path, count: int, fps: float = 8.0):
    """Frame k has brightness 20 + 4 k."""
    levels = (20 + 4 * np.arange(count)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, 32, 32, 3)).copy()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mp4(frames, fps, quality=1))
    return path


def settings(**changes) -> ExtractionSettings:
    values = {"stride": 4, "clip": 8, "fps": 8.0, "frames": 4, "image_size": 32, "batch": 3}
    return ExtractionSettings(**values | changes)


class Recorder:
    """An encoder that returns the number of every frame that it is shown."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(clips))
        return ((clips.float().mean(dim=(2, 3, 4)) - 20) / 4).round()


def test_the_frames_of_every_vector(tmp_path):
    path = brightness_video(tmp_path / "a.mp4", 50)
    encode = Recorder()
    found = extract_sequence("a", path, encode, settings())
    # Clips of 8 frames every 4; of each, the middles of four parts of two frames.
    starts = np.arange(0, 50 - 8 + 1, 4)
    expected = starts[:, None] + np.array([1, 3, 5, 7])
    assert found.features.tolist() == expected.tolist()
    assert found.layout == FeatureLayout(4, 8, 8.0)
    assert found.duration == pytest.approx(50 / 8)
    assert max(encode.calls) == 3
    assert found.layout.centre(2) == pytest.approx((2 * 4 + 4) / 8)


@pytest.mark.parametrize("stride, clip", [(4, 8), (8, 8), (12, 4), (3, 7), (1, 2)])
def test_batches_do_not_change_the_vectors(tmp_path, stride, clip):
    path = brightness_video(tmp_path / "a.mp4", 45)
    found = [
        extract_sequence("a", path, Recorder(), settings(stride=stride, clip=clip, batch=batch))
        for batch in (1, 2, 5, 100)
    ]
    assert len(found[0].features) == (45 - clip) // stride + 1
    assert all((one.features == found[0].features).all() for one in found)


def test_a_video_shorter_than_a_clip_gives_one_vector(tmp_path):
    path = brightness_video(tmp_path / "a.mp4", 5)
    found = extract_sequence("a", path, Recorder(), settings())
    assert found.features.tolist() == [[1, 3, 4, 4]]


def test_another_rate_than_the_videos(tmp_path):
    path = brightness_video(tmp_path / "a.mp4", 48, fps=16.0)
    found = extract_sequence("a", path, Recorder(), settings())
    assert found.features[0].tolist() == [2, 6, 10, 14]
    assert found.duration == pytest.approx(3.0)
    own = extract_sequence("a", path, Recorder(), settings(fps=None))
    assert own.layout.fps == pytest.approx(16.0)
    assert own.features[0].tolist() == [1, 3, 5, 7]


def test_an_extraction_continues_and_lists_broken_videos(tmp_path):
    videos = tmp_path / "videos"
    good = brightness_video(videos / "one.mp4", 20)
    brightness_video(videos / "sub" / "-two.mp4", 20)
    (videos / "broken.mp4").write_bytes(good.read_bytes()[:300])
    found = video_files([videos])
    assert list(found) == ["broken", "one", "sub/-two"]
    out, told = tmp_path / "out", []
    report = extract_folder(
        found, out, Recorder(), settings(), {"sha256": "a"}, advance=told.append
    )
    assert (report.written, report.earlier, len(report.failed)) == (2, 0, 1)
    assert told == list(found)
    (line,) = (out / "failed.jsonl").read_text().splitlines()
    assert json.loads(line)["video"] == "broken"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert set(before) == {"one.parquet", "sub%2F-two.parquet"}
    # A file that was cut by a crash of the disk is written again, a whole one is kept.
    cut = out / "one.parquet"
    content = cut.read_bytes()
    cut.write_bytes(content[:-20])
    (videos / "broken.mp4").write_bytes(good.read_bytes())
    encode = Recorder()
    again = extract_folder(found, out, encode, settings(), {"sha256": "a"})
    assert (again.written, again.earlier, again.failed) == (2, 1, ())
    assert cut.read_bytes() == content
    assert (out / "failed.jsonl").read_text() == ""
    kept = out / "sub%2F-two.parquet"
    assert kept.stat().st_mtime_ns == before[kept.name]


def test_features_of_another_encoder_or_stride_are_not_mixed(tmp_path):
    found = {"a": brightness_video(tmp_path / "a.mp4", 20)}
    out = tmp_path / "out"
    extract_folder(found, out, Recorder(), settings(), {"sha256": "a"})
    with pytest.raises(UserError, match="another encoder"):
        extract_folder(found, out, Recorder(), settings(), {"sha256": "b"})
    for change in ({"stride": 2}, {"features": "pooled"}):
        with pytest.raises(UserError, match="another settings"):
            extract_folder(found, out, Recorder(), settings(**change), {"sha256": "a"})
    # Folders of earlier versions do not say that their vectors are embeddings.
    manifest = json.loads((out / "features.json").read_text())
    del manifest["settings"]["features"]
    (out / "features.json").write_text(json.dumps(manifest))
    assert extract_folder(found, out, Recorder(), settings(), {"sha256": "a"}).earlier == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        extract_folder(found, tmp_path / "full", Recorder(), settings(), {"sha256": "a"})


def test_an_encoder_that_gives_no_numbers_fails_the_video(tmp_path):
    path = brightness_video(tmp_path / "a.mp4", 20)
    with pytest.raises(VideoError, match="not finite"):
        extract_sequence(
            "a", path, lambda clips: torch.full((len(clips), 2), torch.nan), settings()
        )


def test_sources(tmp_path):
    with pytest.raises(UserError, match="there is no such video"):
        video_files([tmp_path / "missing"])
    with pytest.raises(UserError, match="there is no video in"):
        video_files([tmp_path])
    brightness_video(tmp_path / "a.mp4", 8)
    with pytest.raises(UserError, match="the same id 'a'"):
        video_files([tmp_path, tmp_path / "a.mp4"])


def test_feature_files(tmp_path):
    layout = FeatureLayout(16, 16, 15.0)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    one = VideoFeatureSequence("x/y", rows, layout, 4.5)
    path = feature_path(tmp_path, "x/y")
    path.write_bytes(parquet_bytes(one))
    assert parquet_bytes(one) == path.read_bytes()
    back = read_parquet(path)
    assert (back.video, back.layout, back.duration) == ("x/y", layout, 4.5)
    assert (back.features == rows).all()
    import pyarrow.parquet

    times = pyarrow.parquet.read_table(path, partitioning=None)["time"].to_pylist()
    assert times == pytest.approx([8 / 15, 24 / 15, 40 / 15])
    path.write_bytes(b"PAR1 no")
    with pytest.raises(FeatureFileError, match="not a file of `svilm localize extract`"):
        read_parquet(path)
    bad = VideoFeatureSequence("bad", np.array([[1.0], [np.nan]], np.float32), layout, 1.0)
    feature_path(tmp_path, "bad").write_bytes(parquet_bytes(bad))
    with pytest.raises(FeatureFileError, match="vector 1 is not finite"):
        read_parquet(feature_path(tmp_path, "bad"))


def test_files_of_other_projects(tmp_path):
    layout = FeatureLayout(16, 16, 15.0)
    folder = FeatureFolder(tmp_path, layout)
    np.save(tmp_path / "v_abc.npy", np.ones((4, 3)))
    (tmp_path / "def.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n")
    assert folder.read("abc", 9.0).features.shape == (4, 3)
    assert folder.read("abc", 9.0).duration == 9.0
    assert folder.read("def").features.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(MissingFileError, match="'ghi'"):
        folder.read("ghi")
    with pytest.raises(FeatureFileError, match=r"task\.layout\.stride"):
        FeatureFolder(tmp_path).read("abc")
    (tmp_path / "jkl.csv").write_text("1,2\n3\n")
    with pytest.raises(FeatureFileError, match=r"jkl\.csv, line 2: 1 columns"):
        folder.read("jkl")
    (tmp_path / "mno.csv").write_text("1,2\n3,x\n")
    with pytest.raises(FeatureFileError, match=r"mno\.csv, line 2: expected numbers"):
        folder.read("mno")
    np.save(tmp_path / "obj.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FeatureFileError, match="pickle"):
        folder.read("obj")


def test_without_pyarrow_the_error_names_the_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install svilm-fast\[parquet\]"):
        extract_folder({}, tmp_path / "out", Recorder(), settings(), {})
    assert not (tmp_path / "out").exists()


def test_the_commands_on_raw_videos(tmp_path, capsys):
    """Extraction with a run's encoder, its classes by prompts, and a broken file."""
    run = tmp_path / "run"
    make_untrained_run(run)
    videos = tmp_path / "videos"
    good = brightness_video(videos / "good.mp4", 40)
    (videos / "broken.mp4").write_bytes(good.read_bytes()[:200])
    out = tmp_path / "features"
    extract = ("localize", "extract", str(videos), "--run", str(run), "--out", str(out))
    options = ("--stride", "4", "--clip", "4", "--fps", "8", "--device", "cpu")
    assert run_app(app, (*extract, *options)) == 1
    told = capsys.readouterr().out
    assert "1 written, 0 were there, 1 failed" in told
    assert "broken" in told
    assert len(read_parquet(out / "good.parquet").features) == 10
    assert json.loads((out / "features.json").read_text())["encoder"]["step"] == 0
    names = tmp_path / "names.txt"
    names.write_text("spin\nmove left\n")
    scores = tmp_path / "scores.json"
    classify = ("localize", "classify", "--features", str(out), "--out", str(scores))
    prompts = ("--run", str(run), "--classes", str(names), "--device", "cpu")
    assert run_app(app, (*classify, *prompts)) == 0
    written = json.loads(scores.read_text())
    assert written["class"] == ["spin", "move left"]
    assert sum(written["results"]["good"]) == pytest.approx(1)
    capsys.readouterr()
    assert run_app(app, classify) == 2
    assert "give either --run (prompts) or --annotations" in capsys.readouterr().err
    # Vectors of equal width that prompts cannot be compared with are refused.
    pooled = tmp_path / "pooled"
    extract = ("localize", "extract", str(good), "--run", str(run), "--out", str(pooled))
    assert run_app(app, (*extract, *options, "--kind", "pooled")) == 0
    vectors = [read_parquet(each / "good.parquet").features for each in (out, pooled)]
    assert np.linalg.norm(vectors[0], axis=1) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(np.linalg.norm(vectors[1], axis=1), 1, atol=1e-2)
    classify = ("localize", "classify", "--features", str(pooled), "--out", str(scores))
    assert run_app(app, (*classify, *prompts)) == 2
    assert "these features are pooled tokens" in capsys.readouterr().err
    manifest = json.loads((out / "features.json").read_text())
    manifest["encoder"]["sha256"] = "of other weights"
    (out / "features.json").write_text(json.dumps(manifest))
    classify = ("localize", "classify", "--features", str(out), "--out", str(scores))
    assert run_app(app, (*classify, *prompts)) == 2
    assert "the features are of other weights" in capsys.readouterr().err
