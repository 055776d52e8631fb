"""What a configuration amounts to before anything is trained: parameters, FLOPs, bytes."""

from __future__ import annotations

import json
import os

import torch

from svilm_fast.models.flops import count_parameters, encoded_tokens
from svilm_fast.objectives.flops import StepFlops, step_flops
from svilm_fast.objectives.svilm import build_model
from svilm_fast.train.config import RunConfig
from svilm_fast.train.deepspeed_config import build_deepspeed_config, local_batch_of


def launched_ranks() -> int:
    """Return the number of ranks a launcher announced, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def deepspeed_json(config: RunConfig) -> str:
    """Return the dictionary that DeepSpeed would get, as JSON."""
    return json.dumps(build_deepspeed_config(config, launched_ranks()), indent=2)


def flops_of_step(config: RunConfig) -> StepFlops:
    """Return forward and backward of the global batch, with captions and nouns padded as loaded."""
    return step_flops(
        config,
        global_batch=config.training.global_batch,
        num_nouns=config.data.nouns.per_caption,
        text_length=config.data.tokenizer.length,
        noun_length=config.data.tokenizer.noun_length,
    )


def state_bytes(parameters: int, config: RunConfig, world_size: int) -> dict[str, float]:
    """Return the bytes per rank of parameters, gradients and optimizer state.

    ZeRO shards the optimizer state from stage 1, gradients from stage 2, parameters from stage 3.
    With bf16 parameters the optimizer state holds the fp32 master copy.
    """
    stage = config.deepspeed.zero_stage
    low = config.training.precision == "bf16"
    moments = 2 if config.optimizer.name == "adamw" else 1
    per_parameter = {
        "parameters": 2 if low else 4,
        "gradients": 2 if low else 4,
        "optimizer": 4 * moments + (4 if low else 0),
    }
    sharded_from = {"parameters": 3, "gradients": 2, "optimizer": 1}
    return {
        name: size * parameters / (world_size if stage >= sharded_from[name] else 1)
        for name, size in per_parameter.items()
    }


def describe(config: RunConfig) -> str:
    """Build the model on the meta device and return sizes, FLOPs and bytes as text."""
    world_size = launched_ranks()
    local_batch = local_batch_of(config, world_size)
    with torch.device("meta"):
        model = build_model(config)
    encoder, total = count_parameters(model.encoder), count_parameters(model)["total"]
    flops = flops_of_step(config)
    video = config.video
    lines = [f"{config.run.name}: {total:,} parameters"]
    lines += [f"  {name:12} {count:,}" for name, count in encoder.items() if name != "total"]
    lines.append(f"  {'objectives':12} {total - encoder['total']:,}")
    lines.append(
        f"clip: {video.frames} frames of {video.image_size} pixels, "
        f"{encoded_tokens(video):,} of {video.num_tokens:,} video tokens encoded, "
        f"{video.num_groups} groups, {video.num_segments} segments"
    )
    lines.append(
        f"step: {config.training.global_batch} pairs over {world_size} ranks, {local_batch} each"
    )
    lines.append(f"FLOPs per step, forward and backward: {flops.total / 1e12:,.3f} TFLOP")
    for name in ("video", "text", "objectives"):
        lines.append(f"  {name:12} {getattr(flops, name).total / 1e12:,.3f} TFLOP")
    sizes = state_bytes(total, config, world_size)
    lines.append(
        f"state per rank under ZeRO {config.deepspeed.zero_stage}, {config.training.precision}: "
        f"{sum(sizes.values()) / 2**30:.2f} GiB, activations apart"
    )
    lines += [f"  {name:12} {size / 2**30:.2f} GiB" for name, size in sizes.items()]
    pixels = local_batch * video.frames * video.image_size**2 * 3
    lines.append(f"clips of a rank's batch: {pixels / 2**20:,.1f} MiB as uint8")
    return "\n".join(lines)
