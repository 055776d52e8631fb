"""`svilm ckpt interpolate`: weights between two checkpoints, in a folder that loads as a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from svilm_fast.cli import app
from svilm_fast.core.errors import CheckpointError, UserError
from svilm_fast.train.checkpoint.interpolate import mixed
from svilm_fast.train.run.loaded_run import load_run
from svilm_fast.train.run.session import Start, train_as_rank

SHORT = ("training.steps=1", "evaluation.at_end=false", "optimizer.lr=0.01")


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["ckpt", "interpolate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{result.exit_code} {result.output}"


def test_mixed_is_linear_and_exact_at_both_ends() -> None:
    first = {"a": torch.tensor([1.0, 0.1]), "n": torch.tensor(1)}
    second = {"a": torch.tensor([3.0, 0.7]), "n": torch.tensor(5)}
    assert torch.equal(mixed(first, second, 0)["a"], first["a"])
    assert torch.equal(mixed(first, second, 1)["a"], second["a"])
    found = mixed(first, second, 0.25)
    torch.testing.assert_close(found["a"], torch.tensor([1.5, 0.25]))
    assert found["n"] == 5


def test_between_a_run_and_its_fine_tuning(configure, ranks, tmp_path: Path) -> None:
    a, b = tmp_path / "first", tmp_path / "second"
    both = (*SHORT, "ema.decay=0.5")
    train_as_rank(configure(*both, "video.mask.rate=0.2", run="first"), Start(), ranks)
    # Settings of training alone may differ.
    other = ("video.dropout=0.1", "video.mask.rate=0.3", "model.initialisation=scaled")
    tuned = configure(*both, *other, "run.seed=1", run="second")
    train_as_rank(tuned, Start(weights_from=a / "portable"), ranks)
    out = tmp_path / "between"
    alphas = ("--alpha", 0.25, "--alpha", 1)
    assert call(a, b / "portable", *alphas, "--out", out).startswith("0 wrote")
    weights = [load_file(run / "portable" / "model.safetensors") for run in (a, b)]
    for alpha in (0.25, 1):
        run = load_run(out / f"alpha_{alpha:g}")
        found = run.model.state_dict()
        assert set(found) == set(weights[1])
        for name, value in found.items():
            torch.testing.assert_close(
                value, weights[0][name] * (1 - alpha) + weights[1][name] * alpha
            )
    # What the task's evaluators need besides weights; a head of the same shape may mean another.
    state = '{"classes": ["a", "b"], "training_videos": 3}'
    for folder in (a, b):
        (folder / "portable" / "task.json").write_text(state)
    assert call(a, b, "--out", tmp_path / "kept").startswith("0 wrote")
    assert (tmp_path / "kept" / "portable" / "task.json").read_text() == state
    (b / "portable" / "task.json").write_text(state.replace('"b"', '"c"'))
    with pytest.raises(
        CheckpointError, match=r"different data: their task\.json differ in classes"
    ):
        call(a, b, "--out", tmp_path / "x")
    for folder in (a, b):
        (folder / "portable" / "task.json").unlink()

    kept = tmp_path / "time_kept"
    assert call(a, b, "--keep", "*.time_position", "--out", kept).startswith("0 wrote")
    found = load_run(kept).model.state_dict()
    for name, other in (("time", 0.0), ("space", 0.5)):
        name = f"encoder.video.embedding.{name}_position"
        wanted = weights[0][name] * other + weights[1][name] * (1 - other)
        torch.testing.assert_close(found[name], wanted)
    assert not torch.equal(*(each["encoder.video.embedding.time_position"] for each in weights))
    with pytest.raises(UserError, match="--keep 'x' matches no parameter"):
        call(a, b, "--keep", "x", "--out", tmp_path / "x")
    averages = tmp_path / "averages"
    assert call(a, b, "--weights", "ema", "--out", averages).startswith("0 wrote")
    name = "encoder.text.embedding.tokens"
    wanted = sum(load_file(run / "portable" / "ema.safetensors")[name] for run in (a, b)) / 2
    torch.testing.assert_close(load_run(averages).model.state_dict()[name], wanted)

    with pytest.raises(UserError, match="is not empty: give a new --out"):
        call(a, b, "--out", averages)
    with pytest.raises(CheckpointError, match="holds no portable checkpoint"):
        call(a, tmp_path / "none", "--out", tmp_path / "x")
    third = configure(*SHORT, "video.depth=3", run="third")
    train_as_rank(third, Start(), ranks)
    with pytest.raises(CheckpointError, match="hold different models: "):
        call(a, third.run.dir, "--out", tmp_path / "x")
    fourth = configure(*SHORT, "video.mask.rate=0.2", "text.activation=quick_gelu", run="fourth")
    train_as_rank(fourth, Start(), ranks)
    with pytest.raises(CheckpointError, match=r"text\.activation gelu and quick_gelu"):
        call(a, fourth.run.dir, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
