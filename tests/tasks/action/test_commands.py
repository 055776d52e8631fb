"""`svilm evaluate action` and `svilm probe action`: their results, protocols and errors."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import UserError
from svilm_fast.data.errors import AnnotationError, ListFormatError
from svilm_fast.tasks.action.features import ClipFeatures, Extraction, kept
from svilm_fast.tasks.action.zero_shot import Templates, readable
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import run_app


@pytest.fixture(scope="module")
def run(world: Path, ranks, tmp_path_factory) -> Path:
    """A pre-training run of one step."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
    settings = ["training.global_batch=8", "training.steps=1", "evaluation.batch_size=4"]
    off = ["logging.tensorboard=false", "evaluation.at_end=false", "report.at_end=false"]
    given = [f"run.dir={folder}", *data, *SMALL_MODEL, *settings, *off]
    train_as_rank(load_config("demo", given), Start(), ranks)
    return folder


def call(*arguments) -> int:
    return run_app(app, tuple(map(str, arguments)))


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert call(*arguments) == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_zero_shot_is_the_nearest_class(run: Path, tmp_path: Path, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a video of {}.\r\n\r\nsomeone {}\r\n")
    options = ("--run", run, "--label-field", "action", "--device", "cpu", "--clips", 2)
    assert call("evaluate", "action", *options, "--templates", prompts) == 0
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation" / "test_zero_shot_action.json").read_text())
    protocol = found["protocol"]
    templates = Templates.read(prompts)
    assert (protocol["templates"], protocol["templates_sha256"]) == (2, templates.sha256)
    assert f"templates sha256: {templates.sha256}" in told
    assert protocol["views"] == "4 frames x 2 clips x 1 crops, interleaved"
    assert (run / "evaluation" / "test_zero_shot_action_pictures" / "action_confusion.png").exists()
    # By hand: mean of the normalised prompt embeddings against the mean of the views' embeddings.
    loaded = load_run(run)
    encoder = loaded.model.encoder
    classes = []
    for name in found["classes"]:
        texts = [prompt.replace("{}", name) for prompt in templates.prompts]
        tokens, mask = loaded.tokenizer.encode_batch(texts, loaded.config.data.tokenizer.length)
        with torch.no_grad():
            rows = encoder.encode_text(tokens, mask)
        classes.append(torch.nn.functional.normalize(rows.mean(0), dim=0))
    from svilm_fast.commands.recognition import clips_of, views_of

    clips = clips_of(loaded, "test", None, views_of(2, 1, "interleaved"))
    with torch.no_grad():
        video = encoder.encode_video(clips.batch([0]).frames[0]).video.mean(0)
    best = torch.stack(classes) @ torch.nn.functional.normalize(video, dim=0)
    guess = found["videos"][0]["guesses"][0]
    assert guess[0] == found["classes"][int(best.argmax())]
    assert guess[1] == pytest.approx(float(best.max()), abs=1e-5)


def test_a_list_with_classes_and_a_damaged_video(
    run: Path, world: Path, tmp_path: Path, capsys
) -> None:
    with tarfile.open(next((world / "val").glob("*.tar"))) as shard:
        name = next(name for name in shard.getnames() if name.endswith(".mp4"))
        (tmp_path / "a.mp4").write_bytes(shard.extractfile(name).read())
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    rows = [{"video": v, "label": "MoveLeft"} for v in ("a", "damaged", "gone")]
    listed, classes = tmp_path / "ucf.jsonl", tmp_path / "classes.txt"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes.write_text("MoveLeft\nMoveRight\n")
    options = ("--run", run, "--list", listed, "--classes", classes, "--device", "cpu")
    assert call("evaluate", "action", *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "not decoded: gone: no video 'gone'" in told
    found = json.loads((run / "evaluation" / "list_ucf_zero_shot_action.json").read_text())
    assert found["protocol"]["videos"] == 3
    assert set(found["not_decoded"]) == {"damaged", "gone"}
    assert found["zero_shot_action/top5"] == pytest.approx(100 / 3)


def test_all_probes_read_features_that_are_extracted_once(
    run: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    stored = tmp_path / "features"
    options = ("--run", run, "--label-field", "background", "--device", "cpu", "--features", stored)
    capsys.readouterr()
    assert call("probe", "action", *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    # Training passes and windows; 10 and 4 windows of the test.
    assert len(list(stored.glob("*.npz"))) == 4
    protocols = {}
    for name in ("mmv", "mil_nce", "softmax", "attentive"):
        found = json.loads((run / "evaluation" / f"test_probe_{name}.json").read_text())
        assert found["protocol"]["videos"] == 8
        assert f"probe_{name}/top1" in found
        protocols[name] = found["protocol"]
    assert protocols["mmv"]["C"] == 0.001
    assert protocols["mil_nce"]["C"] == 100.0
    assert "10 passes" in protocols["mmv"]["training_features"]
    assert "4 windows" in protocols["mil_nce"]["training_features"]
    assert protocols["mmv"]["scores"] == "of the classifier, averaged over the windows"
    assert protocols["mil_nce"]["scores"] == "of the classifier, summed over the windows"
    rows = told.splitlines()[-5:]
    assert [row.split()[0] for row in rows] == ["probe", "mmv", "mil-nce", "softmax", "attentive"]

    monkeypatch.setattr(
        "svilm_fast.tasks.action.features.Extraction.encoded",
        lambda *_: pytest.fail("extracted again"),
    )
    before = (run / "evaluation" / "test_probe_mmv.json").read_bytes()
    assert call("probe", "action", *options, "--protocol", "mmv") == 0
    assert (run / "evaluation" / "test_probe_mmv.json").read_bytes() == before


def test_damaged_features_are_extracted_again(tmp_path: Path) -> None:
    made = ClipFeatures(["a"], np.ones((1, 2, 3, 4), np.float32), {"b": "gone"})
    calls = []

    def extract():
        calls.append(1)
        return made

    for damage in (False, False, True):
        if damage:
            (path,) = tmp_path.glob("*.npz")
            path.write_bytes(path.read_bytes()[:-40])
        # A file with time steps serves those who read none.
        found = kept(tmp_path, {"seed": 1}, extract, steps=len(calls) != 1 or damage)
        assert (found.ids, found.reasons) == (["a"], {"b": "gone"})
        np.testing.assert_array_equal(found.features, made.features)
    assert len(calls) == 2
    kept(tmp_path, {"seed": 2}, extract, steps=False)
    assert len(calls) == 3
    kept(tmp_path, {"seed": 2}, extract)
    assert len(calls) == 4


def test_training_views_leave_out_what_fails_and_keep_no_steps_unasked(
    run: Path, world: Path, tmp_path: Path
) -> None:
    from svilm_fast.commands.recognition import clips_of, data_of

    with tarfile.open(next((world / "val").glob("*.tar"))) as shard:
        names = [name for name in shard.getnames() if name.endswith(".mp4")][:3]
        for name, target in zip(names, "abc", strict=True):
            (tmp_path / f"{target}.mp4").write_bytes(shard.extractfile(name).read())
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    listed = tmp_path / "list.jsonl"
    order = ("a", "damaged", "b", "c")
    listed.write_text("".join(json.dumps({"video": v, "label": v}) + "\n" for v in order))
    loaded = load_run(run)
    loaded.config.data = data_of(loaded, {"train": listed}, tmp_path)
    clips = clips_of(loaded, "train", None, None, train=True)
    encoder = loaded.model.encoder
    bare = Extraction(encoder, torch.device("cpu"), 2, None, steps=False)
    found = bare.of_training(clips, passes=3, seed=5)
    assert found.ids == ["a", "b", "c"]
    assert list(found.reasons) == ["damaged"]
    assert found.features.shape == (3, 3, 1, 24)
    whole = Extraction(encoder, torch.device("cpu"), 4, None)
    same = whole.of_training(clips, passes=3, seed=5)
    assert same.steps.shape[2] > 1
    np.testing.assert_allclose(same.pooled, found.pooled, atol=1e-5)
    with torch.no_grad():
        drawn = encoder.encode_video(clips.batch([2], seed=5, epoch=1).frames).pooled[0]
    np.testing.assert_allclose(found.pooled[1, 1], drawn.numpy(), atol=1e-5)


def test_features_follow_a_video_that_was_replaced(
    run: Path, world: Path, tmp_path: Path, capsys
) -> None:
    """And the mean over splits: one call, a row for each."""
    with tarfile.open(next((world / "val").glob("*.tar"))) as shard:
        names = [name for name in shard.getnames() if name.endswith(".mp4")][:4]
        contents = [shard.extractfile(name).read() for name in names]
    for target, content in zip("abcd", contents, strict=True):
        (tmp_path / f"{target}.mp4").write_bytes(content)
    (tmp_path / "d.mp4").write_bytes(b"no video")
    lists = {"train1": "ab", "test1": "cd", "train2": "cb", "test2": "a"}
    options: list = ["--run", run, "--device", "cpu", "--protocol", "softmax"]
    options += ["--features", tmp_path / "features"]
    for name, videos in lists.items():
        path = tmp_path / f"{name}.jsonl"
        rows = [{"video": v, "label": "x" if v in "ac" else "y"} for v in videos]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options += [f"--{name[:-1]}-list", path]
    capsys.readouterr()
    assert call("probe", "action", *options) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    mean = json.loads((run / "evaluation" / "lists_probe_softmax_mean.json").read_text())
    splits = list(mean["splits"].values())
    assert list(mean["splits"]) == ["list_test1", "list_test2"]
    first, second = (each["probe_softmax/top1"] for each in splits)
    assert mean["probe_softmax/top1"] == (first + second) / 2
    assert mean["probe_softmax/videos_not_decoded"] == 1
    rows = {row.split()[0]: row.split() for row in told.splitlines() if row.split()}
    assert rows["list_test1"][-2:] == ["2", "1"]
    assert rows["mean"][1] == f"{mean['probe_softmax/top1']:.2f}"
    # The same names, another content: the stored features of `d` are those of no video.
    (tmp_path / "d.mp4").write_bytes(contents[3])
    assert call("probe", "action", *options) == 0
    assert "probe_softmax/videos_not_decoded" in mean
    mean = json.loads((run / "evaluation" / "lists_probe_softmax_mean.json").read_text())
    assert mean["probe_softmax/videos_not_decoded"] == 0


def test_wrong_options_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    evaluate, probe = ("evaluate", "action", "--run", run), ("probe", "action", "--run", run)
    assert "test-000000: has no label; name the field" in fails(capsys, *evaluate)
    assert "--crops 2: give 1 or 3" in fails(capsys, *evaluate, "--crops", 2)
    assert "leave out --split" in fails(capsys, *evaluate, "--split", "val", "--list", "a.csv")
    assert "give the list too" in fails(capsys, *evaluate, "--videos", tmp_path)
    assert "there is no split 'tset'" in fails(capsys, *evaluate, "--split", "tset")
    assert "--protocol svm: give one of mmv, mil-nce" in fails(capsys, *probe, "--protocol", "svm")
    lists = ("--train-list", "a.csv", "--test-list", "b.csv", "--test-list", "c.csv")
    assert "give one of each for every split" in fails(capsys, *probe, *lists)
    twice = ("--list", "a.csv", "--list", "a.csv")
    assert "the same list is given twice" in fails(capsys, *evaluate, *twice)
    assert "--c 0: give a number above 0" in fails(capsys, *probe, "--c", 0)
    # All probes are the default, and one of them has no C: refused before any result is written.
    said = fails(capsys, *probe, "--c", 1)
    assert "the probe attentive has no C" in said
    assert "--protocol: mmv, mil-nce, softmax" in said
    assert "give val or test" in fails(capsys, *probe, "--split", "train")


def test_templates_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for text, message in (
        ("a {}\na video\n", "line 2: expected one {} for the class: 'a video'"),
        ("a {} {}\n", "line 1: expected one {}"),
        ("a {}\na {}\n", "line 2: 'a {}' repeats"),
        ("\n", "no templates"),
    ):
        path.write_text(text)
        with pytest.raises(ListFormatError) as error:
            Templates.read(path)
        assert message in str(error.value)
    (tmp_path / "t.json").write_text('["a {}", 3]')
    with pytest.raises(ListFormatError, match=r"\[1\]: expected a text, found 3"):
        Templates.read(tmp_path / "t.json")
    assert len(Templates.packaged().prompts) == 8


def test_class_names_become_words() -> None:
    assert readable("ApplyEyeMakeup") == "apply eye makeup"
    assert readable("YoYo") == "yo yo"
    assert readable("brush_hair") == "brush hair"
    assert readable("playing TVGames") == "playing tv games"


@pytest.fixture
def labelled(world: Path, tmp_path: Path):
    """Write lists of two videos of the world with labels of their own."""
    names = []
    with tarfile.open(next((world / "val").glob("*.tar"))) as shard:
        for member in [name for name in shard.getnames() if name.endswith(".mp4")][:2]:
            names.append(f"{len(names)}.mp4")
            (tmp_path / names[-1]).write_bytes(shard.extractfile(member).read())

    def write(name: str, *labels: str | None) -> Path:
        rows = [{"video": video, "deed": label} for video, label in zip(names, labels)]
        (tmp_path / name).write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def test_labels_are_checked_before_features_are_extracted(
    run: Path, labelled, capsys, monkeypatch, caplog
) -> None:
    def extract(*_: object, **__: object) -> None:
        raise AssertionError("videos were read")

    monkeypatch.setattr("svilm_fast.tasks.action.features.kept", extract)
    monkeypatch.setattr("svilm_fast.tasks.action.zero_shot.encode_views", extract)
    train = labelled("train.jsonl", "run", "jump")
    probe = ("probe", "action", "--run", run, "--label-field", "deed", "--device", "cpu")
    probe = (*probe, "--train-list", train, "--test-list")
    told = fails(capsys, *probe, labelled("other.jsonl", "sit", "stand"))
    assert "other.jsonl, line 2 (0.mp4), field 'deed': 'sit' is not among the 2 classes" in told
    assert "of the training data (jump, run), and neither is any other label" in told
    told = fails(capsys, *probe, labelled("none.jsonl", "run", None))
    assert "none.jsonl, line 3 (1.mp4): has no deed" in told
    told = fails(capsys, *probe[:-2], labelled("one.jsonl", "run", "run"), *probe[-1:], train)
    assert "1 different labels" in told
    # One of two is a warning, and the work goes on.
    capsys.readouterr()
    assert call(*probe, labelled("half.jsonl", "run", "sit")) != 0
    assert "videos were read" in capsys.readouterr().err
    assert "half.jsonl, line 3 (1.mp4), field 'deed': 'sit' is not among" in caplog.text
    assert "1 video of the test split" in caplog.text
    classes = train.with_name("classes.txt")
    classes.write_text("sit\nstand\n")
    zero_shot = ("evaluate", "action", "--run", run, "--label-field", "deed", "--device", "cpu")
    told = fails(capsys, *zero_shot, "--list", train, "--classes", classes)
    assert "train.jsonl, line 2 (0.mp4), field 'deed': 'run' is not among the 2 given" in told


def test_labels_of_the_validation_split_are_checked_before_training(
    run: Path, labelled, world: Path, tmp_path: Path, ranks
) -> None:
    train = labelled("train.jsonl", "run", "jump")
    val = labelled("val.jsonl", "run", None)
    lists = [f"data.train={train}", f"data.val={val}", f"data.videos={tmp_path}"]
    given = [f"run.dir={tmp_path / 'tuned'}", *lists, "data.captions=none", "report.at_end=false"]
    given += ["training.global_batch=2", "training.steps=1", "task.label_field=deed", *SMALL_MODEL]
    start = Start(weights_from=run / "portable")
    with pytest.raises(AnnotationError, match=r"val\.jsonl, line 3 \(1\.mp4\): has no deed"):
        train_as_rank(load_config("tasks/action", given), start, ranks)
    assert not list((tmp_path / "tuned").glob("checkpoints/*"))
    labelled("val.jsonl", "sit", "stand")
    with pytest.raises(UserError, match=r"val\.jsonl, line 2 \(0\.mp4\), field 'deed': 'sit'"):
        train_as_rank(load_config("tasks/action", given), start, ranks)
