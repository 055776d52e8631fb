"""The recipe of S-ViLM's ViT-B: a real step of fewer layers, and the shapes of the whole."""

import json
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.world import render_world
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.svilm import build_model
from svilm_fast.train.config.load import load_config
from svilm_fast.train.environment import environment_without_launcher


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_step_in_full_width(tmp_path):
    settings = {"size": 64, "frames": 32, "workers": 1, "progress": False}
    render_world(tmp_path / "world", train=4, val=0, test=0, **settings)
    command = [sys.executable, "-m", "svilm_fast.train.pretrain", "--config", "svilm_base"]
    overrides = {
        "run.dir": tmp_path / "run",
        # Every kind of layer in its real width, all grouping blocks, and a twelfth of the pixels:
        # a step of the whole takes a slow processor many minutes. Its shapes are tested below.
        "video.image_size": 64,
        "video.depth": 4,
        "text.depth": 2,
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


@pytest.mark.slow
def test_a_step_of_whole_frames_has_a_gradient_of_every_parameter() -> None:
    config = load_config("svilm_base")
    video, pairs = config.video, 2
    assert (video.frames, video.image_size, video.depth, config.text.depth) == (32, 224, 12, 12)
    captions, nouns = (pairs, config.data.tokenizer.length), (pairs, config.data.nouns.per_caption)
    prompts = (*nouns, config.data.tokenizer.noun_length)
    with torch.device("meta"):
        model = build_model(config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        model.to_empty(device="cpu")
        inputs = ModelInputs(
            text_tokens=torch.zeros(captions, dtype=torch.int64),
            text_mask=torch.ones(captions, dtype=torch.bool),
            blended=torch.zeros(
                (pairs, video.frames, video.image_size, video.image_size, 3), dtype=torch.uint8
            ),
            paste_mask=torch.ones((pairs, video.num_segments), dtype=torch.bool),
            pair_ids=torch.arange(pairs),
            noun_tokens=torch.zeros(prompts, dtype=torch.int64),
            noun_token_mask=torch.ones(prompts, dtype=torch.bool),
            noun_mask=torch.ones(nouns, dtype=torch.bool),
            seeds=StepSeeds(run_seed=1, step=0, keys=torch.arange(pairs)),
        )
        model(inputs).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
