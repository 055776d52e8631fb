"""Locked towers over two ranks, where texts travel although no gradient comes back to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svilm_fast.train.engine.optimizer import build_optimizer

PROGRAM = Path(__file__).parent / "locked_program.py"
SGD = ("optimizer.name=sgd", "optimizer.lr=0.0005")
LOCKS = [("text.lock=true",), ("video.lock=true",), ("text.lock=0", "video.lock=1")]
SETTINGS = [("deepspeed.zero_stage=0",)] + [
    (f"deepspeed.zero_stage={stage}", "training.micro_batch=4") for stage in (1, 2, 3)
]


@pytest.mark.slow
def test_two_ranks_train_what_is_not_locked_as_one_process_does(
    start_jobs, make_config, make_model, inputs_of, tmp_path: Path
) -> None:
    jobs = [(*SGD, *locks, *settings) for locks in LOCKS for settings in SETTINGS]
    told = start_jobs(tmp_path, 2, jobs, PROGRAM)
    for number, locks in enumerate(LOCKS):
        config = make_config(*SGD, *locks)
        reference = make_model(config).double()
        optimizer = build_optimizer(reference, config.optimizer)
        for step in range(2):
            optimizer.zero_grad()
            reference(inputs_of(step)).loss.backward()
            optimizer.step()
        for rank in told:
            for found in rank[number * len(SETTINGS) : (number + 1) * len(SETTINGS)]:
                for name, value in reference.named_parameters():
                    torch.testing.assert_close(
                        found[name].double(), value.detach(), rtol=1e-6, atol=1e-6, msg=name
                    )
