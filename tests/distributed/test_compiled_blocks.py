"""training.compile=blocks through inductor: trains as eager blocks do, checkpoints alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svilm_fast.core.errors import ConfigError
from svilm_fast.models import compilation
from svilm_fast.train.checkpoint.portable import load_weights, save_portable

SGD = ("optimizer.name=sgd", "optimizer.lr=0.0005")


@pytest.mark.slow
def test_stages_with_cache_and_checkpointing_train_as_eager_blocks_do(
    make_engine, make_config, make_model, inputs_of, read_weights, noise, tmp_path: Path
) -> None:
    for stage, more in (
        (1, ("training.micro_batch=6", "video.checkpoint_activations=true")),
        (2, ("text.checkpoint_activations=true",)),
        (3, ("training.micro_batch=6", *noise)),
    ):
        shared = (*SGD, f"deepspeed.zero_stage={stage}", *more)
        eager = make_engine(*shared)
        compiled = make_engine(*shared, "training.compile=blocks")
        for step in range(3):
            wanted = eager.step(inputs_of(step), 5e-4)
            found = compiled.step(inputs_of(step), 5e-4)
            assert float(found.loss) == pytest.approx(float(wanted.loss), rel=1e-5)
        weights = read_weights(eager)
        for name, value in read_weights(compiled).items():
            torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6)
        save_portable(compiled, tmp_path / f"stage_{stage}", 3, {})
        load_weights(make_model(make_config(*more)), tmp_path / f"stage_{stage}")


def test_no_compiler_is_a_configuration_error(make_engine, monkeypatch) -> None:
    def none_found(device: torch.device) -> None:
        raise compilation.NoCompilerError("torch.compile on a CPU needs g++")

    monkeypatch.setattr(compilation, "check_compiler", none_found)
    with pytest.raises(ConfigError, match=r"needs g\+\+; install it, or set training.compile=none"):
        make_engine("training.compile=blocks")
