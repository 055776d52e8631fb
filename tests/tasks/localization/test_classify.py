"""The video-level classifiers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import UserError
from svilm_fast.data.formats.activitynet import read_annotations
from svilm_fast.tasks.localization.classify import (
    SoftmaxClassifier,
    pooled_features,
    prompt_scores,
    prompts,
    read_class_names,
)
from svilm_fast.tasks.localization.extract import written_features
from svilm_fast.train.run_app import run_app


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffHigh jump\r\n\r\nZumba\r\n", encoding="utf-8")
    assert read_class_names(path) == ("High jump", "Zumba")
    path.write_text("a\na\n")
    with pytest.raises(UserError, match="'a' occurs twice"):
        read_class_names(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no class"):
        read_class_names(path)


def test_prompts_come_class_by_class():
    assert prompts(["a", "b"], ["{} 1", "{} 2"]) == ["a 1", "a 2", "b 1", "b 2"]


def test_a_class_that_fills_a_part_of_the_video_is_found():
    texts = torch.eye(4).repeat_interleave(2, dim=0)  # two templates a class
    features = np.tile(np.array([1.0, 0, 0, 0.1]), (30, 1))
    features[10:13] = [0, 0, 1.0, 0]
    scores = prompt_scores(features, texts, 4)
    assert scores.sum() == pytest.approx(1)
    assert scores[2] == pytest.approx(scores[0], rel=0.7)
    assert scores[2] > 100 * scores[3]
    with pytest.raises(UserError, match="the features have 3 numbers and the texts 4"):
        prompt_scores(features[:, :3], texts, 4)


def test_the_softmax_layer_learns_and_repeats_itself(feature_world):
    known = read_annotations(feature_world.annotations)
    # The files of other projects often have a prefix before the ids.
    pooled = {
        f"v_{one.video}": pooled_features(one.features)
        for one in written_features(feature_world.features)
    }
    classes = known.classes("training")
    found = [
        SoftmaxClassifier.trained(pooled, known.subset("training"), classes) for _ in range(2)
    ]
    assert found[0].videos == 12
    right = 0
    for name, video in known.subset("validation").items():
        scores = found[0].scores(pooled[f"v_{name}"])
        assert (scores == found[1].scores(pooled[f"v_{name}"])).all()
        right += classes[int(scores.argmax())] in {segment.label for segment in video.segments}
    assert right >= 5
    with pytest.raises(UserError, match="no video with features and annotations"):
        SoftmaxClassifier.trained(pooled, {}, classes)


def test_an_input_is_never_overwritten(feature_world, tmp_path, capsys):
    annotations = tmp_path / "annotations.json"
    annotations.write_bytes(feature_world.annotations.read_bytes())
    known = annotations.read_bytes()
    named = ("--annotations", str(annotations), "--out", str(annotations))
    features = ("--features", str(feature_world.features))
    predictions = tmp_path / "predictions.json"
    predictions.write_text('{"results": {"v0": []}}')
    for arguments in (("classify", *features, *named), ("evaluate", str(predictions), *named)):
        assert run_app(app, ("localize", *arguments)) == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert annotations.read_bytes() == known
    arguments = ("evaluate", str(predictions), *named[:2], "--out", str(tmp_path / "result.txt"))
    assert run_app(app, ("localize", *arguments)) == 2
    assert "give a file that ends with .json" in capsys.readouterr().err


def test_scores_are_written_into_a_new_folder(feature_world, tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    arguments = ("--annotations", str(feature_world.annotations), "--out", str(out))
    features = ("--features", str(feature_world.features))
    assert run_app(app, ("localize", "classify", *features, *arguments)) == 0
    assert "18 videos, 2 classes, softmax layer trained on 12 videos" in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("classify", "--features", "x", "--out", "y"), "give either --run (prompts) or"),
        (("extract", "missing", "--run", "r", "--out", "o"), "there is no such video or folder"),
        (
            ("evaluate", "missing.json", "--annotations", "missing.json"),
            "'missing.json' does not exist",
        ),
        (("predict", "--run", "missing", "--out", "o"), "is not a run directory"),
        (("video", "missing.mp4", "--run", "r", "--encoder", "e"), "there is no such file"),
    ],
)
def test_errors_of_the_commands(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_app(app, ("localize", *arguments)) == 2
    assert message in capsys.readouterr().err
