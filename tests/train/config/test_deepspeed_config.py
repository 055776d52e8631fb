"""The generated dictionary says everything itself and refuses what it does not know."""

from __future__ import annotations

import pytest

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.config.deepspeed import build_deepspeed_config
from svilm_fast.train.config.load import load_config


def build(*overrides: str, world_size: int = 2) -> dict:
    return build_deepspeed_config(load_config("demo", list(overrides)), world_size)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_keys_whose_default_would_surprise_are_written(stage: int, precision: str) -> None:
    built = build(f"deepspeed.zero_stage={stage}", f"training.precision={precision}")
    assert built["gradient_clipping"] == 1.0
    assert built["gradient_accumulation_steps"] == 1
    assert built["train_batch_size"] == 2 * built["train_micro_batch_size_per_gpu"] == 64
    assert built["zero_optimization"]["stage"] == stage
    assert built["torch_autocast"]["enabled"] == (precision == "bf16_autocast")
    assert built["bf16"]["enabled"] is False
    assert built["fp16"]["enabled"] is False
    assert built["data_types"]["grad_accum_dtype"] == "fp32"
    assert built["checkpoint"]["tag_validation"] == "FAIL"


def test_no_clipping_is_written_as_zero() -> None:
    assert build("training.gradient_clipping=0")["gradient_clipping"] == 0.0


def test_deepspeed_accepts_every_key_and_reads_the_values_back() -> None:
    from svilm_fast.train.environment import import_deepspeed

    import_deepspeed("cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    built = build("deepspeed.zero_stage=3", "training.gradient_clipping=0.25", world_size=1)
    parsed = DeepSpeedConfig(built)
    assert parsed.gradient_clipping == 0.25
    assert parsed.zero_optimization_stage == 3
    assert parsed.zero_config.param_persistence_threshold == 100_000
    assert parsed.train_micro_batch_size_per_gpu == 64
    assert parsed.gradient_accumulation_steps == 1
    assert parsed.grad_accum_dtype == "fp32"


def test_gradients_travel_in_fp32_unless_asked() -> None:
    assert build()["torch_autocast"]["lower_precision_safe_modules"] == []
    asked = build("deepspeed.gradient_dtype=bf16")
    assert "lower_precision_safe_modules" not in asked["torch_autocast"]
    assert asked["communication_data_type"] is None


def test_extras_are_merged_key_by_key() -> None:
    built = build("deepspeed.extra={zero_optimization: {sub_group_size: 7}, comms_logger: {}}")
    assert built["zero_optimization"]["sub_group_size"] == 7
    assert built["zero_optimization"]["stage"] == 1
    assert "comms_logger" in built


@pytest.mark.parametrize("typo", ["gradient_cliping", "zero_optimisation", "comm_logger"])
def test_typos_in_extras_are_refused_because_deepspeed_ignores_them(typo: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key 'deepspeed.extra.{typo}': did you mean"):
        build(f"deepspeed.extra.{typo}=1")


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"=64 is not divisible by 3 ranks; the nearest.*63"):
        build(world_size=3)
