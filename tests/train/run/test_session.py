"""Whole runs on a small rendered world: resume, portable checkpoint, evaluation, wrong input."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from svilm_fast.core.errors import CheckpointError, ConfigError, UserError
from svilm_fast.data.errors import DataError
from svilm_fast.evaluation import embed
from svilm_fast.tasks.pretrain.retrieval import evaluate, evaluation_data
from svilm_fast.train.checkpoint.store import committed_tags
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.ranks.signals import PendingSignal
from svilm_fast.train.run import session
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.reporting import write_report
from svilm_fast.train.run.session import Start, train_as_rank


@pytest.fixture
def losses(read_records):
    def read(config: RunConfig) -> list[float]:
        records = read_records(Path(config.run.dir) / "metrics.jsonl")
        return [record["loss"] for record in records if "loss" in record]

    return read


@pytest.mark.parametrize("stage", [0, 2])
def test_a_stopped_run_resumes_bit_for_bit_in_the_middle_of_an_epoch(
    configure, ranks, stage: int, losses
) -> None:
    # An evaluation draws no random numbers, so a resume need not repeat the one at its step.
    overrides = (
        f"deepspeed.zero_stage={stage}",
        "evaluation.at_end=false",
        "evaluation.every_steps=2",
    )
    whole = configure(*overrides, run="whole")
    train_as_rank(whole, Start(), ranks)
    broken = configure(*overrides, "training.stop_after_steps=2", run="broken")
    assert train_as_rank(broken, Start(), ranks).step == 2
    resumed = configure(*overrides, run="broken")
    assert train_as_rank(resumed, Start(resume=True), ranks).step == 6
    assert losses(resumed) == losses(whole)
    weights = [
        load_file(Path(config.run.dir) / "portable" / "model.safetensors")
        for config in (whole, resumed)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_portable_start_goes_on_in_another_stage(
    configure, ranks, tmp_path: Path, losses
) -> None:
    whole = configure("deepspeed.zero_stage=1", "evaluation.at_end=false", run="whole")
    train_as_rank(whole, Start(), ranks)
    first = configure("training.stop_after_steps=3", "deepspeed.zero_stage=3", run="first")
    train_as_rank(first, Start(), ranks)
    second = configure("deepspeed.zero_stage=1", "evaluation.at_end=false", run="second")
    start = Start(init_from=tmp_path / "first" / "portable")
    assert train_as_rank(second, start, ranks).step == 6
    assert losses(second) == pytest.approx(losses(whole)[3:], rel=1e-4)


def test_weights_alone_start_a_run_on_other_data(
    configure, ranks, world: Path, tmp_path: Path
) -> None:
    short = ("evaluation.at_end=false",)
    first = configure(*short, "training.steps=2", run="first")
    train_as_rank(first, Start(), ranks)
    portable = tmp_path / "first" / "portable"
    other = (
        *short,
        f"data.train={world / 'test'}",
        "training.global_batch=4",
        f"data.tokenizer.path={tmp_path / 'first' / 'tokenizer.json'}",
        "optimizer.name=sgd",
        "optimizer.lr=1e-12",
        "training.steps=1",
    )
    second = configure(*other, run="second")
    with pytest.raises(CheckpointError, match="holds the moments of adamw"):
        train_as_rank(second, Start(init_from=portable), ranks)
    assert train_as_rank(second, Start(weights_from=portable), ranks).step == 1
    weights = load_file(tmp_path / "second" / "portable" / "model.safetensors")
    for name, value in load_file(portable / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


def test_auto_resume_without_a_checkpoint_starts_where_init_from_ended(
    configure, ranks, tmp_path: Path
) -> None:
    short = ("evaluation.at_end=false", "training.steps=2")
    train_as_rank(configure(*short, "training.stop_after_steps=1", run="first"), Start(), ranks)
    second = configure(*short, run="second")
    start = Start(auto_resume=True, init_from=tmp_path / "first" / "portable")
    train_as_rank(second, start, ranks)
    records = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [2]


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"--init-from and --weights-from exclude each other"):
        Start(init_from=Path("a"), weights_from=Path("b"))


@pytest.mark.parametrize(
    "other", [{"overwrite": True}, {"auto_resume": True}, {"init_from": Path("a")}]
)
def test_flags_that_contradict_a_resume_are_refused(other) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        Start(resume=True, **other)


def test_a_run_leaves_everything_that_evaluation_needs(configure, ranks, read_records) -> None:
    config = configure("evaluation.every_steps=4")
    train_as_rank(config, Start(), ranks)
    root = Path(config.run.dir)
    records = read_records(root / "metrics.jsonl")
    evaluated = [r for r in records if "retrieval/t2v_R@1" in r]
    assert [record["step"] for record in evaluated] == [4, 6]
    for part in ("contrast", "grounding", "temporal"):
        assert all(f"loss_{part}" in r for r in records if "loss" in r)
    assert RunConfig.model_validate(yaml.safe_load((root / "config.yaml").read_text())) == config
    assert json.loads((root / "ds_config.json").read_text())["gradient_clipping"] == 1.0
    assert json.loads((root / "env.json").read_text())["packages"]["deepspeed"]
    loaded = load_run(root)
    assert loaded.step == 6
    assert not loaded.model.training
    dataset = evaluation_data(loaded.config, "val", loaded.tokenizer)
    result = evaluate(
        loaded.model.encoder, dataset, loaded.config, torch.device("cpu"), progress=False
    )
    last = {key: value for key, value in evaluated[-1].items() if key.startswith("retrieval")}
    assert {key: value for key, value in result.metrics().items() if key in last} == last


def test_a_run_without_grounding_looks_for_no_nouns(configure, ranks, read_records) -> None:
    config = configure(
        "objectives.grounding.weight=0",
        "data.nouns.extractor=spacy",
        "data.nouns.spacy_model=no_such_model",
        "training.steps=2",
    )
    train_as_rank(config, Start(), ranks)
    root = Path(config.run.dir)
    assert any("retrieval/t2v_R@1" in r for r in read_records(root / "metrics.jsonl"))
    loaded = load_run(root)
    page = write_report(loaded, "val", torch.device("cpu"), progress=False).read_text()
    assert "Similarity of segments" in page


def test_an_unknown_split_is_told_with_the_splits_there_are(configure, ranks) -> None:
    with pytest.raises(UserError, match="no split 'foo'; the splits are train, val, test"):
        evaluation_data(configure(), "foo", None)


def test_a_second_start_never_overwrites_by_accident(configure, ranks, losses) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    with pytest.raises(UserError, match=r"checkpoint step_00000001.*--resume.*--overwrite"):
        train_as_rank(config, Start(), ranks)
    bystander = Path(config.run.dir) / "notes.txt"
    bystander.write_text("mine")
    train_as_rank(config, Start(overwrite=True), ranks)
    assert len(losses(config)) == 1
    assert bystander.read_text() == "mine"


def test_resume_without_a_checkpoint_is_an_error_and_auto_resume_says_so(
    configure, ranks, capsys
) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_as_rank(config, Start(resume=True), ranks)
    assert train_as_rank(config, Start(auto_resume=True), ranks).step == 1
    assert "starting from scratch" in capsys.readouterr().out


def test_a_checkpoint_of_another_shape_names_the_parameter(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    wider = configure("training.steps=2", "video.width=48")
    with pytest.raises(CheckpointError, match=r"parameter '[\w.]+' has shape \[.*24.*48"):
        train_as_rank(wider, Start(resume=True), ranks)
    with pytest.raises(CheckpointError, match=r"has shape"):
        load_run(config.run.dir, overrides=["video.width=48"])


def contents(config: RunConfig) -> dict[str, bytes]:
    root = Path(config.run.dir)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(configure, ranks, world: Path) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    before = contents(config)
    wider = configure("training.steps=2", "video.width=48")
    with pytest.raises(CheckpointError, match="has shape"):
        train_as_rank(wider, Start(resume=True), ranks)
    other_data = configure("training.steps=2", f"data.train={world / 'test'}", "run.seed=7")
    with pytest.raises(DataError):
        train_as_rank(other_data, Start(resume=True), ranks)
    assert contents(config) == before
    assert load_run(config.run.dir).step == 1
    longer = configure("training.steps=2", "evaluation.at_end=false")
    assert train_as_rank(longer, Start(resume=True), ranks).step == 2
    written = yaml.safe_load((Path(config.run.dir) / "config.yaml").read_text())
    assert written["training"]["steps"] == 2


@pytest.mark.parametrize(
    "override",
    [
        "data.train=absent",
        "data.val=absent",
        "model.attention=flash_attn",
        "text.vocab_size=260 data.tokenizer.vocab_size=290",
        "training.global_batch=100",
    ],
)
def test_an_overwrite_that_is_refused_keeps_the_earlier_run(
    configure, ranks, override: str
) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    train_as_rank(config, Start(), ranks)
    before = contents(config)
    wrong = configure(*override.split())
    with pytest.raises((UserError, ValueError)) as caught:
        train_as_rank(wrong, Start(overwrite=True), ranks)
    assert "\n" not in str(caught.value)
    assert contents(config) == before


def test_no_run_directory_and_no_portable_checkpoint_are_told_apart(
    configure, ranks, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        load_run(tmp_path / "nowhere")
    config = configure(
        "training.steps=1", "evaluation.at_end=false", "checkpoint.portable_at_end=false"
    )
    train_as_rank(config, Start(), ranks)
    with pytest.raises(CheckpointError, match="holds no portable checkpoint"):
        load_run(config.run.dir)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.train=null", DataError, "data.train is not set"),
        ("data.train=absent", DataError, r"^data\.train: .*absent"),
        ("data.val=absent", DataError, r"^data\.val: .*absent"),
        ("data.val=absent.csv", DataError, r"^data\.val: .*absent\.csv"),
        ("training.global_batch=100", DataError, "fewer than the global batch of 100"),
        ("text.vocab_size=260", ConfigError, "data.tokenizer|vocab"),
    ],
)
def test_wrong_data_settings_are_one_line(
    configure, ranks, override: str, error: type[Exception], message: str
) -> None:
    if override.startswith("text"):
        config = configure("data.tokenizer.vocab_size=290", override)
    else:
        config = configure(override)
    with pytest.raises(error, match=message) as caught:
        train_as_rank(config, Start(), ranks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "objectives.grounding.weight=0",
        "objectives.temporal.weight=0",
        "objectives.contrast.video=blended",
        "objectives.grounding.video=blended",
        "objectives.contrast.video=blended objectives.contrast.exclude_partner=true",
        "training.precision=bf16_autocast",
        "data.shuffle_captions=true",
        "optimizer.name=sgd",
        "video.checkpoint_activations=true",
        "run.deterministic=true",
    ],
)
def test_switches_of_a_recipe_train(configure, ranks, override: str, losses) -> None:
    config = configure("training.steps=2", "evaluation.at_end=false", *override.split())
    train_as_rank(config, Start(), ranks)
    assert len(losses(config)) == 2
    assert all(loss > 0 for loss in losses(config))
    torch.use_deterministic_algorithms(False)


def test_bf16_parameters_train_under_zero(configure, ranks) -> None:
    config = configure("training.precision=bf16", "deepspeed.zero_stage=2", "training.steps=2")
    train_as_rank(config, Start(), ranks)
    weights = load_file(Path(config.run.dir) / "portable" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_what_the_data_lacks_is_said_at_the_start_and_at_the_end(
    configure, ranks, capsys, caplog
) -> None:
    embed._warn_once.cache_clear()
    config = configure("training.steps=1", "data.tokenizer.length=4", "evaluation.max_clips=2")
    train_as_rank(config, Start(), ranks)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("data.")]
    assert [line.split(": ")[0] for line in said] == [
        "data.train",
        "data.val",
        "data.train, as listed",
        "data.train, as read",
    ]
    assert said[0].split(": ")[1] == said[2].split(": ")[1]
    assert f"{config.training.global_batch} x captions cut" in said[3]
    assert "skipped 0 of " in said[3]
    assert "data.val, as evaluated: 2 x captions cut" in caplog.text
    assert lines.index(said[2]) > max(i for i, s in enumerate(lines) if s.startswith("step "))


def test_after_a_signal_only_the_checkpoint_is_written(
    configure, ranks, monkeypatch, capsys
) -> None:
    @contextlib.contextmanager
    def terminated() -> Iterator[PendingSignal]:
        pending = PendingSignal()
        pending.number = signal.SIGTERM
        yield pending

    config = configure("training.steps=2", "evaluation.at_end=false")
    with monkeypatch.context() as patch:
        patch.setattr(session, "deferred_signals", terminated)
        outcome = train_as_rank(config, Start(), ranks)
    assert (outcome.step, outcome.signal, outcome.finished) == (1, signal.SIGTERM, False)
    root = Path(config.run.dir)
    assert committed_tags(root / "checkpoints") == ["step_00000001"]
    assert not (root / "portable").exists()
    assert (
        "stopped by SIGTERM at step 1, which is saved; continue with --resume"
        in capsys.readouterr().out
    )
    with pytest.raises(CheckpointError, match="--resume"):
        load_run(root)
    assert train_as_rank(config, Start(resume=True), ranks).finished
    assert load_run(root).step == 2
