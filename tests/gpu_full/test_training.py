"""DeepSpeed steps of the real model on a GPU, with fused kernels, in bf16."""

import json

import pytest
import torch

from svilm_fast.data.world import render_world
from svilm_fast.train.pretrain import main

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["bf16_autocast", "bf16"])
def test_zero_2_steps_train(tmp_path, precision):
    assert torch.cuda.is_available()
    render_world(tmp_path / "world", train=64, val=8, test=8, workers=1, progress=False)
    run = tmp_path / "run"
    data = [f"data.{split}={tmp_path / 'world' / split}" for split in ("train", "val", "test")]
    settings = ["distributed.device=cuda", "deepspeed.zero_stage=2", "training.steps=20"]
    settings += [f"training.precision={precision}", "logging.every_steps=1", f"run.dir={run}"]
    assert main(["--config", "demo", *data, *settings]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
