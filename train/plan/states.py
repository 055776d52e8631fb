"""Bytes of parameters, optimizer state and gradients on a rank, by ZeRO stage.

From the code of DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py):
ZeRO 1 to 3 hold an fp32 master copy of a rank's share even of fp32 parameters; ZeRO 1 and 2 reduce
through a bucket of `deepspeed.bucket_elements` and keep the reduced share; a step copies that share
once per optimizer group.
"""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.train.plan.workload import Choice, Workload

FP32 = 4
# Elements of the blocks in which stage 0 gathers gradients for its all-reduce (deepspeed/runtime).
STAGE_0_BLOCK = 500_000_000


@dataclass(frozen=True)
class GradientBytes:
    """Bytes of gradients, in addition to the resident state.

    full: whole gradients of this rank. shard: the rank's reduced share. bucket: communication
    buffers. step: copies and temporaries of the optimizer.
    """

    full: float
    shard: float
    bucket: float
    step: float


def resting(workload: Workload, choice: Choice) -> dict[str, float]:
    """Return the resident bytes of a rank, by part."""
    config, sizes = workload.config, workload.parameters
    stage, world = choice.zero_stage, workload.world_size
    size = workload.precision.parameter
    share = sizes.total / world
    moments = 2 if config.optimizer.name == "adamw" else 1
    trained = sizes.trained / (world if stage else 1)
    parts = {"parameters": float(size * (share if stage == 3 else sizes.total))}
    if stage:
        parts["fp32 master copy"] = FP32 * sizes.trained / world
    parts["optimizer moments"] = FP32 * moments * trained
    if config.ema.decay is not None:
        parts["moving average"] = FP32 * trained
    if sizes.teacher:
        parts["teacher"] = float(size * sizes.teacher)
    if stage == 3:
        parts["gradient shard"] = FP32 * sizes.trained / world
        parts["reduction bucket"] = float(size * config.deepspeed.bucket_elements)
        if world > 1:
            gathered = config.deepspeed.live_elements + config.deepspeed.prefetch_elements
            parts["gathered parameters"] = float(
                size * (sizes.persistent + min(gathered, sizes.total - sizes.persistent))
            )
    if stage == 1 and config.training.precision == "bf16":
        parts["fp32 gradients"] = float(FP32 * sizes.trained)
    return parts


def gradients(workload: Workload, choice: Choice) -> GradientBytes:
    """Return the bytes of gradients; `full` is 0 if ZeRO reduces them during backward."""
    config, sizes = workload.config, workload.parameters
    stage, world = choice.zero_stage, workload.world_size
    size = workload.precision.parameter
    whole = float(size * sizes.trained)
    low = config.training.precision == "bf16"
    shard = FP32 * sizes.trained / world
    cached = choice.micro_batch is not None
    buckets = 2 if config.deepspeed.overlap_communication else 1
    bucket = float(size * config.deepspeed.bucket_elements * buckets)
    # The fused optimizer of CUDA needs no temporaries; on CPU AdamW makes two, SGD none.
    temporaries = 0 if workload.on_gpu or config.optimizer.name != "adamw" else 2
    group = FP32 * sizes.largest_group / world
    if stage == 0:
        block = FP32 * min(sizes.trained, STAGE_0_BLOCK) if world > 1 else 0
        return GradientBytes(whole, 0.0, block, temporaries * FP32 * sizes.largest)
    if stage == 3:
        full = whole if cached and choice.reduction == "coalesce" else 0.0
        return GradientBytes(full, 0.0, 0.0, (1 + temporaries) * group)
    full = whole if cached and (choice.reduction == "coalesce" or stage == 1) else 0.0
    if low and stage == 1:
        return GradientBytes(0.0, 0.0, bucket, temporaries * group)
    if cached and choice.reduction == "boundary" and stage == 2:
        shard *= 2  # the accumulated share, and that of the last micro-batch
    # fp32 shares are copied once per optimizer group; bf16 parameters have a flat fp32 share.
    step = (temporaries + (not low)) * group
    return GradientBytes(full, shard, bucket, step)
