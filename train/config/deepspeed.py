"""Generates DeepSpeed's dictionary from the configuration, with every key explicit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.nested import merge
from svilm_fast.core.text import counted
from svilm_fast.train.config.deepspeed_extra import checked_extra
from svilm_fast.train.config.schema import RunConfig


def local_batch_of(config: RunConfig, world_size: int) -> int:
    """Return the pairs per rank. Raises ConfigError if the ranks do not divide the batch."""
    local, rest = divmod(config.training.global_batch, world_size)
    if rest:
        nearest = f"{local * world_size} and " if local else ""
        raise ConfigError(
            f"training.global_batch={config.training.global_batch} is not divisible by "
            f"{counted(world_size, 'rank')}; the nearest that are: "
            f"{nearest}{(local + 1) * world_size}"
        )
    return local


def micro_batch_of(config: RunConfig, world_size: int) -> int:
    """Return the pairs per pass of the encoders."""
    local_batch = local_batch_of(config, world_size)
    asked = config.training.micro_batch
    if asked == "auto":
        raise ConfigError(
            "training.micro_batch=auto was not resolved for this run: give a number of pairs, or "
            "null for the rank's whole batch"
        )
    return local_batch if asked is None else min(asked, local_batch)


def _precision(config: RunConfig) -> dict[str, Any]:
    precision = config.training.precision
    autocast: dict[str, Any] = {"enabled": precision == "bf16_autocast", "dtype": "bfloat16"}
    if config.deepspeed.gradient_dtype == "fp32":
        # With its default list DeepSpeed reduces the gradients of linear layers in bf16.
        autocast["lower_precision_safe_modules"] = []
    return {
        "bf16": {
            "enabled": precision == "bf16",
            "immediate_grad_update": True,
            "check_grad_overflow": True,
        },
        "fp16": {"enabled": False},
        "torch_autocast": autocast,
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _zero(config: RunConfig) -> dict[str, Any]:
    settings = config.deepspeed
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": settings.bucket_elements,
        "allgather_partitions": True,
        "allgather_bucket_size": settings.bucket_elements,
        "overlap_comm": settings.overlap_communication,
        "round_robin_gradients": False,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
        "compute_grad_norm": True,
    }
    if settings.zero_stage == 3:
        zero |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": settings.prefetch_elements,
            "stage3_param_persistence_threshold": settings.persistence_elements,
            "stage3_max_live_parameters": settings.live_elements,
            "stage3_max_reuse_distance": settings.live_elements,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    return zero


def build_deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`.

    `gradient_clipping` is always set, because DeepSpeed 0.19.8 clips at 1.0 without it. Raises
    ConfigError if the ranks do not divide the global batch, and for invalid extras.
    """
    local_batch = local_batch_of(config, world_size)
    generated: dict[str, Any] = {
        "train_batch_size": config.training.global_batch,
        "train_micro_batch_size_per_gpu": local_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.training.gradient_clipping,
        "zero_optimization": _zero(config),
        **_precision(config),
        # SGD is not in DeepSpeed's list of tested optimizers; our tests compare it with torch.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        # With autocast the default would be the autocast dtype.
        "communication_data_type": "fp32",
        "disable_allgather": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "checkpoint": {"tag_validation": "FAIL", "load_universal": False},
        "tensorboard": {"enabled": False},
        "wandb": {"enabled": False},
        "csv_monitor": {"enabled": False},
        "flops_profiler": {"enabled": False},
    }
    if config.deepspeed.gradient_dtype == "bf16":
        generated["communication_data_type"] = None
    extra = checked_extra(config.deepspeed.extra, generated, Path(config.run.dir))
    return merge(generated, extra)
