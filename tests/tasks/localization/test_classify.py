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
    sequences = list(written_features(feature_world.features))
    classes = known.classes("training")
    found = [
        SoftmaxClassifier.trained(sequences, known.subset("training"), classes) for _ in range(2)
    ]
    videos = known.subset("validation")
    right = 0
    for one in sequences:
        if one.video in videos:
            scores = found[0].scores(one.features)
            assert (scores == found[1].scores(one.features)).all()
            labels = {segment.label for segment in videos[one.video].segments}
            right += classes[int(scores.argmax())] in labels
    assert right >= 5
    with pytest.raises(UserError, match="no video with features and annotations"):
        SoftmaxClassifier.trained(sequences, {}, classes)


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
