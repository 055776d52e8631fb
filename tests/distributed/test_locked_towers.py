"""Locked towers under the engine, with and without gradient cache, in every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.checkpoint.portable import load_moments, save_portable
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.engine.sharded_state import masters

SGD = ("optimizer.name=sgd", "optimizer.lr=0.0005")
CHECKPOINTED = ("video.checkpoint_activations=true", "text.checkpoint_activations=true")
CASES = [
    (0, 12, ("text.lock=true",)),
    (1, 5, ("text.lock=true", *CHECKPOINTED)),
    (2, 5, ("video.lock=1",)),
    (3, 5, ("video.lock=true",)),
    (3, 12, ("text.lock=0", "video.lock=0")),
]


@pytest.mark.parametrize(("stage", "micro_batch", "locks"), CASES)
def test_the_rest_trains_as_in_plain_torch_and_the_locked_part_stays(
    make_engine,
    make_config,
    make_model,
    inputs_of,
    read_weights,
    tmp_path: Path,
    stage: int,
    micro_batch: int,
    locks: tuple[str, ...],
) -> None:
    config = make_config(*SGD, *locks)
    reference = make_model(config).double()
    before = {name: value.detach().clone() for name, value in reference.named_parameters()}
    optimizer = build_optimizer(reference, config.optimizer)
    engine = make_engine(
        *SGD,
        *locks,
        f"deepspeed.zero_stage={stage}",
        f"training.micro_batch={micro_batch}",
        "ema.decay=0.5",
    )
    for step in range(2):
        optimizer.zero_grad()
        reference(inputs_of(step)).loss.backward()
        optimizer.step()
        assert engine.step(inputs_of(step), config.optimizer.lr).applied
        engine.ema.update(step + 1)
    found = read_weights(engine)
    trained = {name for name, value in reference.named_parameters() if value.requires_grad}
    assert 0 < len(trained) < len(before)
    for name, value in reference.named_parameters():
        if name in trained:
            torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found[name], before[name].float()), name
    elements = sum(before[name].numel() for name in trained)
    padding = 2 * len(engine.deepspeed.optimizer.param_groups)
    assert elements <= sum(master.numel() for master in masters(engine)) <= elements + padding
    save_portable(engine, tmp_path / "portable", 2, {})
    weights = load_file(tmp_path / "portable" / "model.safetensors")
    assert all(torch.equal(weights[name], found[name]) for name in before)
    assert set(load_file(tmp_path / "portable" / "ema.safetensors")) == trained


def test_a_tower_that_was_locked_can_be_trained_from_the_portable_checkpoint(
    make_engine, inputs_of, tmp_path: Path
) -> None:
    first = make_engine("text.lock=true", "deepspeed.zero_stage=1")
    first.step(inputs_of(0), 1e-3)
    save_portable(first, tmp_path / "portable", 1, {})
    for stage in (0, 2):
        second = make_engine(f"deepspeed.zero_stage={stage}")
        load_moments(second, tmp_path / "portable")
        assert second.step(inputs_of(1), 1e-3).applied


def test_two_locked_towers_leave_nothing_to_train(make_config) -> None:
    with pytest.raises(ConfigError, match="leave no tower to train"):
        make_config("video.lock=true", "text.lock=true")
