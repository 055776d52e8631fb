"""The task in the ordinary engine: it learns, resumes bit for bit, evaluates and reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.cli import app
from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.data.feature_files import MANIFEST, feature_path, features_fingerprint
from svilm_fast.data.formats.activitynet import read_annotations, read_predictions
from svilm_fast.data.formats.cuhk import write_class_scores
from svilm_fast.data.loader import build_loader
from svilm_fast.tasks.base import EvaluationRequest, task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app
from tests.tasks.localization.conftest import LABELS, make_feature_world

SMALL = (
    "task.length=64",
    "task.actionformer.width=16",
    "task.actionformer.heads=2",
    "task.actionformer.levels=3",
    "task.actionformer.normaliser=20",
    "training.global_batch=4",
    "logging.every_steps=1",
    "logging.tensorboard=false",
    "report.at_end=false",
)


def configured(world, run: Path, *more: str):
    return load_config("tasks/localization", [*world.overrides, *SMALL, f"run.dir={run}", *more])


def test_a_run_resumes_predicts_and_reports(
    feature_world, ranks, tmp_path, read_records, capsys
) -> None:
    long = ("training.steps=5", "evaluation.every_steps=4")
    whole = configured(feature_world, tmp_path / "whole", *long)
    assert train_as_rank(whole, Start(), ranks).finished
    halved = configured(feature_world, tmp_path / "halved", *long)
    stopped = configured(feature_world, tmp_path / "halved", *long, "training.stop_after_steps=2")
    train_as_rank(stopped, Start(), ranks)
    assert train_as_rank(halved, Start(resume=True), ranks).finished

    # Stopped in the middle of an epoch and resumed: the same losses, figures and weights.
    def lines(name: str) -> list[tuple]:
        records = read_records(tmp_path / name / "metrics.jsonl")
        return [(r["step"], r.get("loss"), r.get("localization/mAP")) for r in records]

    assert lines("whole") == lines("halved")
    first, second = (
        load_file(tmp_path / name / "portable" / "model.safetensors")
        for name in ("whole", "halved")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["head.normaliser"] != 20.0

    # The commands on the finished run agree with each other.
    run, annotations = str(tmp_path / "whole"), str(feature_world.annotations)
    out = tmp_path / "predictions.json"
    capsys.readouterr()
    arguments = ("--run", run, "--split", "val", "--device", "cpu")
    assert run_app(app, ("localize", "predict", *arguments, "--out", str(out))) == 0
    assert "in 6 videos" in capsys.readouterr().out
    assert run_app(app, ("evaluate", "task", *arguments)) == 0
    written = json.loads((tmp_path / "whole/evaluation/val_localization.json").read_text())
    result = tmp_path / "result.json"
    arguments = ("localize", "evaluate", str(out), "--annotations", annotations)
    assert run_app(app, (*arguments, "--out", str(result))) == 0
    told = capsys.readouterr().out
    for fact in ("annotations sha256", "duplicate rule: none", "blocked list: None", "classifier"):
        assert fact in told
    # Only the run reads features.
    assert written["metrics"].pop("localization/videos_without_features") == 0
    assert json.loads(result.read_text())["metrics"] == written["metrics"]
    assert written["protocol"]["videos_without_features"] == []
    assert run_app(app, ("report", "--run", run, "--split", "val", "--device", "cpu")) == 0
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Timelines" in page
    assert "duplicate rule: none" in page
    assert (tmp_path / "whole" / "pictures" / "timelines.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        (),
        ("task.resize=false", "task.length=96"),
        ("task.labels=external",),
        (
            "task.labels=external",
            "task.head=gtad",
            "task.gtad.width=32",
            "task.gtad.hidden=16",
            "task.gtad.samples=4",
            "task.length=32",
        ),
    ],
)
def test_heads_find_actions_that_are_easy_to_see(feature_world, change) -> None:
    """mAP is above 60 % only if targets, time axis and post-processing agree."""
    task, data = opened(feature_world, *change)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    place = SimpleNamespace(rank=0, device=torch.device("cpu"))
    with build_loader(task.config.data, data, batch_size=4) as loader:
        stream = loader.forever()
        for step in range(120):
            loss = model(task.inputs(next(stream), step, place)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    (evaluator,) = task.evaluators(None, "val", None)
    result = evaluator.run(model, EvaluationRequest(place.device))
    assert result.metrics()["localization/mAP@0.75"] > 60


def test_classes_and_extraction_belong_to_the_run(feature_world) -> None:
    task, _ = opened(feature_world)
    state = json.loads(json.dumps(task.state()))
    gone = load_config("tasks/localization", [*feature_world.overrides, *SMALL])
    other = task_of(gone.model_copy(update={}))
    other.restore({**state, "classes": ["a", "b", "c"]})
    assert other.classes == ("a", "b", "c")
    assert other.model().head.classes == 3
    with pytest.raises(UserError, match=r"task\.json is damaged"):
        other.restore({"classes": "abc"})


def opened(world, *more: str):
    task = task_of(load_config("tasks/localization", [*world.overrides, *SMALL, *more]))
    return task, task.dataset("train", None, train=True)


def test_samples_depend_on_seed_epoch_and_video_alone(feature_world) -> None:
    _, data = opened(feature_world, "task.crop=[0.5,0.9]")
    draws = data.draws([3, 5], seed=7, epoch=2)
    again = data.draws([5], seed=7, epoch=2)
    first, second = data.clip(5, draws[1]), data.clip(5, again[0])
    assert torch.equal(first.features, second.features)
    assert (first.segments == second.segments).all()
    other = data.clip(5, data.draws([5], seed=7, epoch=3)[0])
    assert other.features.shape != first.features.shape or not torch.equal(
        other.features, first.features
    )


def test_crops_hold_segments_where_the_features_show_them(feature_world) -> None:
    task, data = opened(feature_world, "task.crop=[0.4,0.6]", "task.resize=false")
    for index in range(len(data)):
        sample = data.clip(index, data.draws([index], seed=1, epoch=0)[0])
        assert len(sample.features) <= 0.6 * 70
        assert len(sample.segments)
        for (start, end), label in zip(sample.segments, sample.labels):
            assert -0.5 <= start < end <= len(sample.features) - 0.5
            middle = round(float(start + end) / 2)
            assert sample.features[middle, LABELS.index(task.classes[label])] > 0.5


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_loader_resumes_in_the_middle_of_an_epoch(feature_world, workers) -> None:
    task, data = opened(feature_world, f"data.workers={workers}", "data.unit=2")

    def loader():
        return build_loader(task.config.data, data, batch_size=4, seed=3)

    with loader() as whole:
        stream = whole.forever()
        batches = [next(stream) for _ in range(5)]
    with loader() as before:
        stream = before.forever()
        for _ in range(2):
            next(stream)
        state = before.state_dict()
    with loader() as after:
        after.load_state_dict(json.loads(json.dumps(state)))
        stream = after.forever()
        rest = [next(stream) for _ in range(3)]
    for one, other in zip(batches[2:], rest):
        assert one.ids == other.ids
        assert torch.equal(one.features, other.features)
        assert all((a == b).all() for a, b in zip(one.segments, other.segments))


def test_videos_without_features_are_missed_and_listed(tmp_path, ranks) -> None:
    world = make_feature_world(tmp_path / "world", 4, 3)
    feature_path(world.features, "v005").unlink()
    config = configured(world, tmp_path / "run", "training.steps=1")
    train_as_rank(config, Start(), ranks)
    (path,) = (tmp_path / "run" / "evaluation").glob("*.json")
    protocol = json.loads(path.read_text())["protocol"]
    assert protocol["videos_without_features"] == ["v005"]
    videos = read_annotations(world.annotations).subset("validation")
    assert protocol["annotations"] == sum(len(video.segments) for video in videos.values())


def test_blocked_videos_and_wrong_segments_are_named_in_the_result(tmp_path, ranks) -> None:
    world = make_feature_world(tmp_path / "world", 4, 3)
    content = json.loads(world.annotations.read_text())
    content["database"]["v004"]["annotations"].append({"segment": [3.0, 3.0], "label": LABELS[0]})
    world.annotations.write_text(json.dumps(content))
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("v_v005\n")
    rules = ("task.bad_segments=drop", f"task.blocked={blocked}")
    config = configured(world, tmp_path / "run", "training.steps=1", *rules)
    train_as_rank(config, Start(), ranks)
    (path,) = (tmp_path / "run" / "evaluation").glob("*.json")
    protocol = json.loads(path.read_text())["protocol"]
    assert protocol["blocked_videos"] == 1
    assert protocol["videos"] == 2
    assert protocol["segments that are wrong, drop"] == 1


def test_the_first_videos_are_asked_for_with_or_without_features(tmp_path) -> None:
    world = make_feature_world(tmp_path / "world", 2, 4)
    for name in ("v003", "v005"):
        feature_path(world.features, name).unlink()
    task, _ = opened(world)
    (evaluator,) = task.evaluators(None, "val", 2)
    assert evaluator.dataset.ids == ["v002"]
    assert evaluator.dataset.missing == ["v003"]


def test_features_of_another_encoder_are_not_resumed_on(tmp_path) -> None:
    world = make_feature_world(tmp_path / "world", 3, 1)
    before = opened(world)[1].fingerprint
    (world.features / MANIFEST).write_text('{"encoder": {"sha256": "a"}}')
    first = opened(world)[1].fingerprint
    (world.features / MANIFEST).write_text('{"encoder": {"sha256": "b"}}')
    assert len({before, first, opened(world)[1].fingerprint}) == 3


def test_replaced_features_of_equal_size_change_the_fingerprint(tmp_path) -> None:
    path = tmp_path / "a.npy"
    found = []
    for value in (0.0, 1.0):
        np.save(path, np.full((5, 3), value, np.float32))
        found.append(features_fingerprint(tmp_path, [path]))
    assert found[0] != found[1]


def test_external_classes_name_the_proposals(feature_world, ranks, tmp_path) -> None:
    names = ("run", "sit", "jump")  # an order of its own, and a class more
    videos = read_annotations(feature_world.annotations).subset("validation")
    scores = tmp_path / "scores.json"
    write_class_scores(scores, names, {f"v_{name}": [0.2, 0.0, 0.8] for name in videos})
    config = configured(
        feature_world,
        tmp_path / "run",
        "training.steps=1",
        "task.labels=external",
        "task.nms.keep=1000",
        f"task.classifier={scores}",
    )
    train_as_rank(config, Start(), ranks)
    run, out = str(tmp_path / "run"), tmp_path / "out.json"
    arguments = ("--run", run, "--split", "val", "--device", "cpu", "--out", str(out))
    assert run_app(app, ("localize", "predict", *arguments)) == 0
    for segments in read_predictions(out).values():
        labels = [segment.label for segment in segments]
        assert labels[0] == "jump"
        assert set(labels) == {"jump", "run"}
    (path,) = (tmp_path / "run" / "evaluation").glob("*.json")
    classifier = json.loads(path.read_text())["protocol"]["classifier"]
    assert classifier.startswith("scores.json (sha256 ")


@pytest.mark.parametrize(
    "change, message",
    [
        ("task.width=9", "task.width=9, and the features in .* have 8 numbers a vector"),
        ("task.annotations=null", "task.annotations is not set"),
        ("task.subsets.train=nothing", "no subset 'nothing'"),
        ("task.layout.stride=4", "task.layout: set stride, clip and fps"),
        ("data.train=no/such/folder", "features of none of the 12 annotated videos"),
    ],
)
def test_settings_that_do_not_fit(feature_world, change, message) -> None:
    with pytest.raises(UserError, match=message):
        opened(feature_world, change)


@pytest.mark.parametrize(
    "change, message",
    [
        ("task.length=66", "must be a multiple of 4"),
        ("task.head=gtad", "head=gtad needs"),
        ("task.actionformer.window=4", "window must be odd"),
        ("task.crop=[0.9,0.5]", "smallest <= largest"),
    ],
)
def test_settings_that_contradict_each_other(feature_world, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tasks/localization", [*feature_world.overrides, *SMALL, change])


def test_the_published_recipe_is_valid() -> None:
    config = load_config("tasks/localization_activitynet", [])
    assert config.task.actionformer.levels == 6  # type: ignore[attr-defined]
    assert config.task.length == 192  # type: ignore[attr-defined]
