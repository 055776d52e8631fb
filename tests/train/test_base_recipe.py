"""The recipe of S-ViLM's ViT-B takes a real step, on a CPU, through DeepSpeed."""

import json
import subprocess
import sys

import pytest

from svilm_fast.data.world import render_world
from svilm_fast.train.environment import environment_without_launcher


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_step_of_the_full_model(tmp_path):
    settings = {"size": 224, "frames": 32, "workers": 1, "progress": False}
    render_world(tmp_path / "world", train=4, val=0, test=0, **settings)
    command = [sys.executable, "-m", "svilm_fast.train.pretrain", "--config", "svilm_base"]
    overrides = {
        "run.dir": tmp_path / "run",
        "data.train": tmp_path / "world" / "train",
        "data.workers": 0,
        "training.epochs": "null",
        "training.steps": 1,
        "training.global_batch": 2,
        # Processors without bf16 products emulate them, for minutes; the matrix of ZeRO stages
        # trains in bf16 on small models.
        "training.precision": "fp32",
        "distributed.device": "cpu",
        "evaluation.at_end": "false",
        "checkpoint.portable_at_end": "false",
        "logging.tensorboard": "false",
    }
    result = subprocess.run(
        [*command, *(f"{key}={value}" for key, value in overrides.items())],
        capture_output=True,
        text=True,
        check=False,
        env=environment_without_launcher(),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 0 < record["loss"] < 20
    assert record["gradient_norm"] > 0
    assert record["skipped_steps"] == 0
