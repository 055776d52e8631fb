"""`svilm localize video`: from a video file to a table and a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from svilm_fast.cli import app
from svilm_fast.data.formats.activitynet import (
    AnnotatedSegment,
    AnnotatedVideo,
    annotations_json,
)
from svilm_fast.data.formats.activitynet import PredictedSegment as Guess
from svilm_fast.data.world.video import encode_mp4
from svilm_fast.report.localization import VideoTimeline, draw_timelines, shown_predictions
from svilm_fast.report.page import picture
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app
from tests.tasks.localization.test_task import SMALL
from tests.untrained_run import make_untrained_run

pytest.importorskip("pyarrow")


def test_the_best_predictions_without_overlaps_are_shown():
    found = [
        Guess(0, 10, "a", 0.5),
        Guess(1, 9, "a", 0.9),
        Guess(8.5, 20, "b", 0.4),
        Guess(30, 40, "a", 0.1),
    ]
    assert [one.score for one in shown_predictions(found, 10)] == [0.9, 0.4, 0.1]
    assert [one.score for one in shown_predictions(found, 1)] == [0.9]


def test_names_with_dollar_signs_are_no_formulas():
    one = Guess(0, 5, "win $\\frac$5 or $6", 0.5)
    rows = [VideoTimeline("$\\sum$ {x} $a_{", 10.0, None, [one])]
    drawn = picture("timeline", lambda theme: draw_timelines(rows, theme), "a timeline")
    assert drawn.light.startswith(b"\x89PNG")


@pytest.mark.slow
def test_from_a_video_file_to_a_table_and_a_picture(tmp_path, ranks, capsys):
    encoder = tmp_path / "encoder"
    make_untrained_run(encoder)
    draw = np.random.default_rng(0)
    videos = tmp_path / "videos"
    videos.mkdir()
    annotated = {}
    for number in range(5):
        frames = draw.integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
        (videos / f"v{number}.mp4").write_bytes(encode_mp4(frames, 8.0))
        segments = (AnnotatedSegment(1.0, 3.0, "jump"), AnnotatedSegment(4.0, 6.0, "run"))
        subset = "training" if number < 4 else "validation"
        annotated[f"v{number}"] = AnnotatedVideo(f"v{number}", subset, 7.5, segments)
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(annotations_json(annotated, "test")))
    features = tmp_path / "features"
    extract = ("localize", "extract", str(videos), "--run", str(encoder), "--out", str(features))
    options = ("--stride", "2", "--clip", "4", "--fps", "8", "--device", "cpu")
    assert run_app(app, (*extract, *options)) == 0
    run = tmp_path / "run"
    data = [f"data.train={features}", f"data.val={features}", f"task.annotations={annotations}"]
    steps = ("training.steps=1", f"run.dir={run}", "task.width=128")
    train_as_rank(load_config("tasks/localization", [*data, *SMALL, *steps]), Start(), ranks)
    annotations.unlink()  # the run keeps its classes, and how the features were made
    for path in features.iterdir():
        path.unlink()

    names, picture = tmp_path / "names.txt", tmp_path / "timeline.png"
    names.write_text("run\n")
    shared = ("--run", str(run), "--encoder", str(encoder), "--device", "cpu")
    capsys.readouterr()
    arguments = ("localize", "video", str(videos / "v4.mp4"), *shared, "--out", str(picture))
    assert run_app(app, (*arguments, "--classes", str(names))) == 0
    told = capsys.readouterr().out
    assert "v4.mp4, 7.5 s, 29 vectors" in told
    assert "run" in told
    assert "jump" not in told
    assert picture.read_bytes().startswith(b"\x89PNG")

    def refused(*changed: str) -> str:
        assert run_app(app, changed) == 2
        return capsys.readouterr().err

    names.write_text("fly\n")
    told = refused(*arguments, "--classes", str(names))
    assert "was not trained on the class 'fly'; its classes: jump, run" in told
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((videos / "v4.mp4").read_bytes()[:500])
    assert f"error: {broken}: " in refused("localize", "video", str(broken), *shared)
    assert "there is no such file" in refused("localize", "video", "missing.mp4", *shared)
    wrong = ("--run", str(encoder), "--encoder", str(encoder), "--device", "cpu")
    assert "is a run of task 'pretrain'" in refused("localize", "video", str(broken), *wrong)
    other = ("--run", str(run), "--encoder", str(run), "--device", "cpu")
    assert "has no video encoder" in refused("localize", "video", str(broken), *other)
