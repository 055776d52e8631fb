"""The ViCLIP recipes: what they plan, and both phases on two ranks, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from svilm_fast.cli import app
from svilm_fast.core.records import read_records
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.plan.workload import workload_of
from svilm_fast.train.run_app import run_app

PROGRAM = Path(__file__).parent / "recipe_program.py"


@pytest.mark.parametrize(
    ("recipe", "tokens"),
    [
        ("viclip_base", 157),
        ("viclip_base_unmasked", 1568),
        ("viclip_demo", 52),
        ("viclip_demo_unmasked", 512),
    ],
)
def test_the_phases_differ_in_what_they_drop(recipe: str, tokens: int) -> None:
    config = load_config(recipe)
    assert workload_of(config, 2, on_gpu=False).tokens == tokens
    assert list(config.objectives.active()) == ["contrast"]
    assert config.objectives.contrast.scale.maximum == 100  # a temperature of 0.01
    other = load_config(recipe.removesuffix("_unmasked"))
    assert config.model_dump()["text"] == other.model_dump()["text"]
    assert config.video.model_copy(update={"drop": other.video.drop}) == other.video


def test_plans_fit_two_ranks_and_a_frozen_text_tower_costs_less(capsys) -> None:
    found = []
    for more in ((), ("text.lock=true",)):
        words = ["plan", "-c", "viclip_demo", "--gpus", "2", "--memory", "4GiB", "--json", *more]
        assert run_app(app, words) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert all(plan["fits"] for plan in found)
    assert found[0]["local_batch"] == 32
    assert found[1]["peak_bytes"] < found[0]["peak_bytes"]


@pytest.mark.slow
def test_both_phases_on_two_ranks_resume_bit_for_bit(
    world: Path, run_on_ranks, tmp_path: Path
) -> None:
    def settings(run: str, *more: str) -> list[str]:
        return [
            f"run.dir={tmp_path / run}",
            *(f"data.{split}={world / split}" for split in ("train", "val", "test")),
            *SMALL_MODEL,
            "video.drop_path=0.2",
            "training.global_batch=8",
            "logging.every_steps=1",
            "logging.tensorboard=false",
            "evaluation.batch_size=4",
            "report.at_end=false",
            *more,
        ]

    def losses(run: str) -> list[tuple[int, float]]:
        records, _ = read_records((tmp_path / run / "metrics.jsonl").read_bytes())
        return [(r["step"], r["loss"]) for _, r in records if "loss" in r]

    def weights(run: str) -> dict[str, Tensor]:
        return load_file(tmp_path / run / "portable" / "model.safetensors")

    masked, first = tmp_path / "masked" / "portable", ("training.steps=6",)
    # Half an epoch of 24 clips in batches of 8 would be one step.
    second = ("training.epochs=2",)
    for recipe, run, source, steps in (
        ("viclip_demo", "masked", "none", first),
        ("viclip_demo_unmasked", "unmasked", masked, second),
    ):
        run_on_ranks(2, PROGRAM, recipe, "new", source, *settings(run, *steps))
        halved = settings(f"{run}_halved", *steps)
        run_on_ranks(2, PROGRAM, recipe, "new", source, *halved, "training.stop_after_steps=3")
        run_on_ranks(2, PROGRAM, recipe, "resume", "none", *halved)
        assert len(losses(run)) == 6
        assert losses(f"{run}_halved") == losses(run)
        wanted, found = weights(run), weights(f"{run}_halved")
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not torch.equal(
        *(weights(run)["encoder.text.embedding.tokens"] for run in ("masked", "unmasked"))
    )
