"""Fine-tuning on questions: resumed, on two ranks, evaluated with missing videos, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.world import render_world
from svilm_fast.evaluation.answers import normalised
from svilm_fast.tasks.base import EvaluationRequest, task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app
from tests.tasks.runs import OFF, PROGRAM, losses, weights

METRIC = "accuracy_qa"
# All that is random: tokens left out, drop path, dropout of towers and head.
NOISE = ("video.drop.rate=0.25", "video.drop_path=0.2", "text.dropout=0.1", "task.dropout=0.2")


def test_a_pretrained_run_is_tuned_stopped_resumed_evaluated_and_reported(
    settings, ranks, tmp_path: Path, read_records, capsys
) -> None:
    short = ("training.steps=1", *OFF)
    train_as_rank(load_config("demo", settings("pretrained", *short)), Start(), ranks)
    start = Start(weights_from=tmp_path / "pretrained" / "portable")
    capsys.readouterr()
    whole = settings("whole", *NOISE, "report.at_end=false")
    assert train_as_rank(load_config("tasks/qa", whole), start, ranks).finished
    told = capsys.readouterr().out
    before, after = weights(tmp_path / "pretrained"), weights(tmp_path / "whole")
    heads = sum(name.startswith("head.") for name in after)
    assert f"new, they keep their initial values: {heads} (head." in told
    assert "in the weights alone, left out" in told
    assert "step 6 qa | accuracy " in told
    # What the head does not read is not trained; the towers are.
    for name in ("encoder.video.projection.weight", "encoder.text.projection.weight"):
        assert torch.equal(before[name], after[name])
    for name in ("encoder.video.blocks.0.mlp.expand.weight", "encoder.text.embedding.tokens"):
        assert not torch.equal(before[name], after[name])

    halved = settings("halved", *NOISE, "report.at_end=false")
    stop = load_config("tasks/qa", [*halved, "training.stop_after_steps=3"])
    train_as_rank(stop, start, ranks)
    train_as_rank(load_config("tasks/qa", halved), Start(resume=True), ranks)
    records = [read_records(tmp_path / run / "metrics.jsonl") for run in ("whole", "halved")]
    assert losses(records[0], METRIC) == losses(records[1], METRIC)
    assert len(losses(records[0], METRIC)) == 6
    resumed = weights(tmp_path / "halved")
    assert all(torch.equal(after[name], resumed[name]) for name in after)

    # The training data or the vocabulary of a run cannot change under it.
    with pytest.raises(CheckpointError, match=r"the task's state differs .*task\.json"):
        train_as_rank(
            load_config("tasks/qa", [*halved, "task.answers=3"]), Start(resume=True), ranks
        )

    run = tmp_path / "whole"
    (run / "portable" / "task.json").stat()
    # A finished run knows its answers without the training data.
    arguments = ("--run", str(run), "--split", "val", "--device", "cpu", "data.train=gone")
    assert run_app(app, ("evaluate", "task", *arguments)) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation" / "val_qa.json").read_text())
    assert f"vocabulary sha256: {found['protocol']['vocabulary_sha256']}" in told
    assert "qa/videos_not_decoded" in told
    evaluated = [record for record in records[0] if "qa/accuracy" in record][-1]
    assert found["qa/accuracy"] == evaluated["qa/accuracy"]
    right = [q["guesses"][0][0] == normalised(q["answer"]) for q in found["questions"]]
    assert found["qa/accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert found["protocol"]["questions"] == len(right)
    state = json.loads((run / "task.json").read_text())
    assert found["protocol"]["vocabulary_sha256"] == state["answers_sha256"]
    table = (run / "evaluation" / "val_qa.txt").read_text()
    assert state["answers_sha256"] in table
    assert run_app(app, ("report", *arguments)) == 0
    page = (run / "report.html").read_text()
    assert "majority baseline" in page
    assert state["answers_sha256"] in page
    assert (run / "pictures" / "qa_types.png").is_file()
    assert (run / "pictures" / "qa_wrong.png").is_file()


def test_videos_without_frames_count_as_wrong_and_are_listed(
    settings, videos: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    asked = [{"question": "what is it?", "answer": "one", "type": "what"}] * 2
    rows = [{"video": name, "questions": asked} for name in ("a", "damaged", "b", "gone")]
    rows[0] = {"video": "a", "questions": [asked[0] | {"answer": "never in training"}]}
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        "tasks/qa",
        settings("run", f"data.val={listed}", f"data.videos={videos}", "data.captions=none"),
    )
    task = task_of(config)
    (evaluator,) = task.evaluators(Tokenizer.train(["what is it?"], 300), "val", None)
    result = evaluator.run(task.model(), EvaluationRequest(torch.device("cpu")))
    assert result.accuracy.total.asked == 7
    assert set(result.missing) == {"damaged", "gone"}
    assert "no video 'gone'" in result.missing["gone"]
    lost = "2, with 4 questions that count as wrong"
    assert result.protocol["videos_not_decoded"] == lost
    assert result.metrics()["qa/videos_not_decoded"] == 2
    assert result.protocol["questions_outside_the_vocabulary"] == 1
    by_video = {each.video: each.right for each in result.answered}
    assert not any(by_video[video] for video in ("a", "damaged", "gone"))
    result.write(tmp_path, "out")
    assert "not decoded: gone: " in (tmp_path / "out.txt").read_text()
    # The first video alone: its own questions and no other's.
    (evaluator,) = task.evaluators(Tokenizer.train(["what is it?"], 300), "val", 1)
    capsys.readouterr()
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich draws no bar on what is no terminal
    result = evaluator.run(task.model(), EvaluationRequest(torch.device("cpu"), progress=True))
    assert result.protocol["questions"] == 1
    assert result.protocol["split"] == "val, only the first 1 clips"
    assert "embedding clips" in capsys.readouterr().err


def test_only_questions_that_are_cut_are_counted(settings) -> None:
    """A loader without workers cuts captions with the same tokenizer."""
    config = load_config("tasks/qa", settings("run", "data.workers=0", "data.tokenizer.length=6"))
    task = task_of(config)
    tokenizer = Tokenizer.train(["a"], 300)
    (evaluator,) = task.evaluators(tokenizer, "val", None)
    result = evaluator.run(task.model(), EvaluationRequest(torch.device("cpu")))
    assert result.protocol["questions_cut"] == len(result.answered)


def test_missing_videos_change_no_vocabulary(
    settings, videos: Path, tmp_path: Path, caplog
) -> None:
    """Answers and the order of equally frequent ones are those of the list."""
    answers = {"gone": "first", "a": "second", "b": "third", "gone2": "third"}
    rows = [
        {"video": video, "questions": [{"question": "what?", "answer": answer}]}
        for video, answer in answers.items()
    ]
    listed = tmp_path / "train.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (f"data.train={listed}", f"data.videos={videos}", "data.captions=none")
    task = task_of(load_config("tasks/qa", settings("run", *given, "task.answers=2")))
    task.dataset("train", Tokenizer.train(["what?"], 300), train=True)
    state = task.state()
    assert state["answers"] == ["third", "first"]
    assert state["training_questions"] == 4
    assert "2 training questions are about 2 videos that are missing or refused" in caplog.text


def test_a_given_vocabulary_with_held_out_answers_is_told(settings, tmp_path: Path, caplog) -> None:
    path = tmp_path / "answers.json"
    rows = [{"video": "a", "questions": [{"question": "q", "answer": "held out", "type": "what"}]}]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.mp4").write_bytes(b"")
    given = settings("run", f"task.answers_file={path}", f"data.test={listed}")
    given += ["data.captions=none", "data.skips.always_allowed=9"]
    path.write_text(json.dumps(["red", "held out", "two"]))
    answers = task_of(load_config("tasks/qa", given)).answers  # type: ignore[attr-defined]
    assert answers.leaked == 1
    assert "1 answers that occur in validation or test questions" in caplog.text
    path.write_text(json.dumps(["never", "nowhere"]))
    with pytest.raises(UserError, match="no training question has an answer of the vocabulary"):
        task_of(load_config("tasks/qa", given)).model()


def test_a_damaged_state_is_refused(settings) -> None:
    task = task_of(load_config("tasks/qa", settings("run")))
    state = task.state()
    fresh = task_of(load_config("tasks/qa", settings("run")))
    fresh.restore(json.loads(json.dumps(state)))
    assert fresh.state() == state
    for damage in (
        {"answers": ["a"]},
        {"answers": ["a", "b"]},
        {"majority": {}},
        {"training_questions": "x"},
    ):
        with pytest.raises(UserError, match=r"task\.json is damaged"):
            fresh.restore(state | damage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_train_and_answer_as_one(
    settings, ranks, run_on_ranks, tmp_path: Path, read_records, stage: int
) -> None:
    same = ("report.at_end=false", "task.dropout=0.2", "optimizer.name=sgd", "run.threads=1")
    one, two = settings("one", *same), settings("two", *same, f"deepspeed.zero_stage={stage}")
    train_as_rank(load_config("tasks/qa", one), Start(), ranks)
    run_on_ranks(2, PROGRAM, "tasks/qa", *two)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
    records = [read_records(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for each in ("qa/accuracy", "qa/majority"):
        found = [[r[each] for r in record if each in r] for record in records]
        assert found[0] == found[1] != []


@pytest.mark.slow
def test_a_small_world_is_learned_beyond_the_majority(tmp_path: Path, ranks) -> None:
    """From random weights, with one large object to a clip: its colour and background are seen."""
    world = tmp_path / "world"
    few = {"object_counts": (1.0,), "object_scale": 1.3, "colors": ("red", "green", "blue")}
    sizes = {"train": 192, "val": 32, "test": 0, "size": 32, "frames": 8}
    render_world(world, **sizes, **few, workers=1, progress=False)
    config = load_config(
        "tasks/qa",
        [
            f"run.dir={tmp_path / 'run'}",
            f"data.train={world / 'train'}",
            f"data.val={world / 'val'}",
            "data.test=null",
            "video.frames=4",
            "video.image_size=32",
            "video.patch=8",
            "video.num_segments=2",
            "video.width=64",
            "video.depth=2",
            "text.width=64",
            "text.depth=2",
            "training.global_batch=32",
            "training.steps=150",
            "optimizer.lr=2e-3",
            "logging.tensorboard=false",
            "report.at_end=false",
        ],
    )
    train_as_rank(config, Start(), ranks)
    loaded = load_run(tmp_path / "run")
    (evaluator,) = loaded.task.evaluators(loaded.tokenizer, "val", None)
    result = evaluator.run(loaded.model, EvaluationRequest(torch.device("cpu")))
    assert result.accuracy.total.accuracy > result.majority.total.accuracy + 5
