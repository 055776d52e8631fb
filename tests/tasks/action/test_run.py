"""Fine-tuning on actions: resumed, on two ranks, evaluated with missing videos, reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.data.errors import AnnotationError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.world import render_world
from svilm_fast.tasks.action.classes import ClassNames
from svilm_fast.tasks.action.page import confused_classes, most_confused
from svilm_fast.tasks.action.result import recognition_result
from svilm_fast.tasks.base import EvaluationRequest, task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app
from tests.tasks.runs import OFF, PROGRAM, losses, weights

METRIC = "accuracy_action"
# All that is random: tokens left out, drop path, dropout of the tower and of the head.
NOISE = ("video.drop.rate=0.25", "video.drop_path=0.2", "video.dropout=0.1", "task.dropout=0.2")
CPU = EvaluationRequest(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("features", ["pooled", "embedding"])
def test_a_pretrained_run_is_tuned_stopped_and_resumed(
    settings, ranks, tmp_path: Path, read_records, capsys, features: str
) -> None:
    short = ("training.steps=1", *OFF)
    train_as_rank(load_config("demo", settings("pretrained", *short)), Start(), ranks)
    start = Start(weights_from=tmp_path / "pretrained" / "portable")
    noise = (*NOISE, f"task.features={features}", "task.clips=2", "task.crops=3")
    capsys.readouterr()
    whole = settings("whole", *noise, "report.at_end=false")
    assert train_as_rank(load_config("tasks/action", whole), start, ranks).finished
    told = capsys.readouterr().out
    assert "new, they keep their initial values: 2 (head.weight, head.bias)" in told
    assert "step 6 action | top1 " in told
    before, after = weights(tmp_path / "pretrained"), weights(tmp_path / "whole")
    # The head does not read the text tower; the projection only with features=embedding.
    assert torch.equal(
        before["encoder.text.embedding.tokens"], after["encoder.text.embedding.tokens"]
    )
    assert not torch.equal(
        before["encoder.video.blocks.0.mlp.expand.weight"],
        after["encoder.video.blocks.0.mlp.expand.weight"],
    )
    name = "encoder.video.projection.weight"
    assert torch.equal(before[name], after[name]) is (features == "pooled")

    halved = settings("halved", *noise, "report.at_end=false")
    stop = load_config("tasks/action", [*halved, "training.stop_after_steps=3"])
    train_as_rank(stop, start, ranks)
    train_as_rank(load_config("tasks/action", halved), Start(resume=True), ranks)
    records = [read_records(tmp_path / run / "metrics.jsonl") for run in ("whole", "halved")]
    assert losses(records[0], METRIC) == losses(records[1], METRIC)
    assert len(losses(records[0], METRIC)) == 6
    resumed = weights(tmp_path / "halved")
    assert all(torch.equal(after[name], resumed[name]) for name in after)

    changed = load_config("tasks/action", [*halved, "task.label_field=background"])
    with pytest.raises(CheckpointError, match=r"the task's state differs .*task\.json"):
        train_as_rank(changed, Start(resume=True), ranks)


def test_a_finished_run_is_evaluated_with_views_and_reported(
    settings, ranks, tmp_path: Path, read_records, capsys
) -> None:
    views = ("task.clips=2", "task.crops=3", "training.steps=2", "report.at_end=false")
    train_as_rank(load_config("tasks/action", settings("run", *views)), Start(), ranks)
    run = tmp_path / "run"
    # A finished run knows its classes without the training data.
    arguments = ("--run", str(run), "--split", "val", "--device", "cpu", "data.train=gone")
    assert run_app(app, ("evaluate", "task", *arguments)) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation" / "val_action.json").read_text())
    assert f"classes sha256: {found['protocol']['classes_sha256']}" in told
    records = read_records(run / "metrics.jsonl")
    evaluated = [record for record in records if "action/top1" in record][-1]
    for name in ("top1", "top5", "mean_of_top1_and_top5", "mean_per_class"):
        assert found[f"action/{name}"] == evaluated[f"action/{name}"]
    right = [video["guesses"][0][0] == video["label"] for video in found["videos"]]
    assert found["action/top1"] == pytest.approx(100 * sum(right) / len(right))
    assert np.sum(found["confusion"]) == len(right) == 8
    state = json.loads((run / "task.json").read_text())
    protocol = found["protocol"]
    assert protocol["classes_sha256"] == state["classes_sha256"]
    assert protocol["classes_from"] == "24 training videos"
    assert protocol["views"] == "4 frames x 2 clips x 3 crops, interleaved"
    assert state["classes_sha256"] in (run / "evaluation" / "val_action.txt").read_text()
    assert run_app(app, ("report", *arguments)) == 0
    assert state["classes_sha256"] in (run / "report.html").read_text()
    assert (run / "pictures" / "action_confusion.png").is_file()
    # Softmax outputs are averaged over the views, not logits.
    loaded = load_run(run)
    (evaluator,) = loaded.task.evaluators(loaded.tokenizer, "val", None)
    clip = evaluator.dataset.batch([0])
    with torch.no_grad():
        shares = loaded.model.logits(clip.frames[0]).softmax(-1).mean(0)
    assert found["videos"][0]["guesses"][0][1] == pytest.approx(float(shares.max()), abs=1e-5)


def test_videos_without_frames_count_as_wrong_and_are_listed(
    settings, videos: Path, tmp_path: Path
) -> None:
    labels = {"a": "run", "damaged": "walk", "b": "never in training", "gone": "run"}
    rows = [{"video": name, "label": label} for name, label in labels.items()]
    listed, training = tmp_path / "list.jsonl", tmp_path / "train.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    data = (f"data.train={training}", f"data.val={listed}", f"data.videos={videos}")
    config = load_config(
        "tasks/action", settings("run", *data, "data.captions=none", "task.label_field=label")
    )
    task = task_of(config)
    tokenizer = Tokenizer.train(["a dog"], 300)
    (evaluator,) = task.evaluators(tokenizer, "val", None)
    result = evaluator.run(task.model(), CPU)
    assert task.state()["classes"] == ["run", "walk"]
    assert result.scores.videos == 4
    assert set(result.missing) == {"damaged", "gone"}
    assert "no video 'gone'" in result.missing["gone"]
    assert result.protocol["videos_not_decoded"] == "2, counted as wrong"
    assert result.metrics()["action/videos_not_decoded"] == 2
    assert result.summary()[-1] == "not decoded, counted as wrong: 2 videos"
    assert result.protocol["videos_outside_the_classes"] == 1
    assert {k: v.videos for k, v in result.scores.classes.items()} == {0: 2, 1: 1}
    assert result.scores.top5 == 25.0
    result.write(tmp_path, "out")
    assert "not decoded: gone: " in (tmp_path / "out.txt").read_text()
    (evaluator,) = task.evaluators(tokenizer, "val", 1)
    result = evaluator.run(task.model(), CPU)
    assert result.scores.videos == 1
    assert result.protocol["split"] == "val, only the first 1 clips"


def test_a_field_of_a_list_is_found_as_its_header_spells_it(
    settings, videos: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("video,Class Name\na,run\nb,walk\n")
    given = (f"data.train={listed}", f"data.videos={videos}", "data.captions=none")
    config = load_config("tasks/action", settings("run", *given, "task.label_field=Class Name"))
    task = task_of(config)
    clips = task.dataset("train", Tokenizer.train(["a"], 300), train=True)
    assert task.state()["classes"] == ["run", "walk"]
    assert task.labels(clips.batch([0, 1])).tolist() == [0, 1]


def test_samples_without_one_label_are_refused(settings, videos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    data = (f"data.train={listed}", f"data.videos={videos}", "data.captions=none")
    config = load_config("tasks/action", settings("run", *data, "task.label_field=label"))
    for labels, message in (
        (
            ("run", None),
            r"list.jsonl, line 2 \(b\): has no label; name the field of its class with",
        ),
        (("run", ["run", "walk"]), r"line 2 \(b\): label: expected one label, found \['run', 'w"),
        (("run", ["run"]), "the samples have 1 different labels"),
    ):
        rows = [{"video": name, "label": label} for name, label in zip("ab", labels, strict=True)]
        listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises((AnnotationError, UserError), match=message):
            task_of(config).model()


def test_classes_are_sorted_and_kept_with_their_hash() -> None:
    names = ClassNames.of(["b", "a", "b", "C"])
    assert names.names == ("C", "a", "b")
    assert ClassNames.of(["10", "9", "0"]).names == ("0", "9", "10")
    assert names.numbers(["b", "x"]).tolist() == [2, -1]
    kept = {"classes": list(names.names), "classes_sha256": names.sha256}
    assert ClassNames.restored(kept) == names
    for damage in ({"classes": ["a"]}, {"classes": ["a", "b"]}, {"classes_sha256": ""}):
        with pytest.raises(UserError, match=r"task\.json is damaged"):
            ClassNames.restored(kept | damage)


def test_the_confusion_picture_shows_the_classes_with_most_errors() -> None:
    classes = ClassNames(tuple(f"class {n:03}" for n in range(60)))
    labels = {f"v{n}": classes.names[n % 60] for n in range(120)}
    scores = {video: np.eye(60)[n % 60] for n, video in enumerate(labels)}
    for video in ("v3", "v63", "v5"):
        scores[video] = np.eye(60)[7]
    result = recognition_result("action", classes, labels, scores, {}, {})
    assert most_confused(result.confusion) == [(3, 7, 2), (5, 7, 1)]
    shown = confused_classes(result)
    assert len(shown) == 40
    assert {3, 5} <= set(shown)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_train_and_classify_as_one(
    settings, ranks, run_on_ranks, tmp_path: Path, read_records, stage: int
) -> None:
    same = ("report.at_end=false", "task.dropout=0.2", "optimizer.name=sgd", "run.threads=1")
    one, two = settings("one", *same), settings("two", *same, f"deepspeed.zero_stage={stage}")
    train_as_rank(load_config("tasks/action", one), Start(), ranks)
    run_on_ranks(2, PROGRAM, "tasks/action", *two)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
    records = [read_records(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for each in ("action/top1", "action/top5"):
        found = [[r[each] for r in record if each in r] for record in records]
        assert found[0] == found[1] != []


@pytest.mark.slow
def test_a_small_world_is_learned(tmp_path: Path, ranks) -> None:
    """From random weights: the background, which one look at the clip shows."""
    world = tmp_path / "world"
    render_world(world, train=128, val=48, test=0, size=32, frames=8, workers=1, progress=False)
    config = load_config(
        "tasks/action",
        [
            f"run.dir={tmp_path / 'run'}",
            f"data.train={world / 'train'}",
            f"data.val={world / 'val'}",
            "data.test=null",
            "task.label_field=background",
            "video.frames=4",
            "video.image_size=32",
            "video.patch=8",
            "video.num_segments=2",
            "video.width=48",
            "video.depth=2",
            "text.width=24",
            "text.depth=1",
            "training.global_batch=16",
            "training.steps=120",
            "optimizer.lr=2e-3",
            "logging.tensorboard=false",
            "report.at_end=false",
        ],
    )
    train_as_rank(config, Start(), ranks)
    loaded = load_run(tmp_path / "run")
    (evaluator,) = loaded.task.evaluators(loaded.tokenizer, "val", None)
    scores = evaluator.run(loaded.model, CPU).scores
    assert scores.top1 > 30  # of seven backgrounds
