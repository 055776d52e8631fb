"""The collectives of one training step: which, how many, how many bytes.

The bytes of a collective are those of its whole tensor: the gathered one, the input of a
reduce-scatter, the all-reduced one. For the losses, tests compare them byte for byte with the
tensors that torch.distributed receives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from svilm_fast.objectives.cost import CollectiveKind
from svilm_fast.train.plan.links import Links
from svilm_fast.train.plan.workload import Choice, Workload

FP32 = 4
# ZeRO 3 gathers module by module; this is about how many modules with parameters a block has.
MODULES_OF_A_BLOCK = 6


@dataclass(frozen=True)
class Collective:
    """`calls` collectives of a kind with `size` bytes in total. what: the tensor."""

    part: str
    what: str
    kind: CollectiveKind
    size: float
    calls: int

    def seconds(self, links: Links, world_size: int) -> float:
        """Return the time on these links, without overlap."""
        return links.seconds(self.kind, self.size, world_size, self.calls)


def loss_traffic(workload: Workload) -> list[Collective]:
    """Return what the objectives send in forward and backward; empty for one rank."""
    return [
        Collective(found.name, sent.what, sent.kind, sent.size, sent.calls)
        for found in workload.costs()
        for sent in found.cost.sent
    ]


def zero_traffic(workload: Workload, choice: Choice) -> list[Collective]:
    """Return what ZeRO sends for gradients and parameters.

    DeepSpeed 0.19.8 reduces the gradients of stages 1 and 2 by all-reduces of whole buckets
    (`use_multi_rank_bucket_allreduce`) and gathers the updated parameters; stage 3 gathers them in
    every forward and backward of a micro-batch and reduce-scatters the gradients.
    """
    world, config = workload.world_size, workload.config
    if world == 1:
        return []
    sizes, stage = workload.parameters, choice.zero_stage
    gradient_size = FP32 if config.deepspeed.gradient_dtype == "fp32" else 2
    gradients = float(gradient_size * sizes.trained)
    updated = float(workload.precision.parameter * sizes.trained)
    buckets = max(1, math.ceil(sizes.trained / config.deepspeed.bucket_elements))
    passes = micro_batches(workload, choice)
    reductions = passes if choice.micro_batch is not None and choice.reduction == "boundary" else 1
    if stage == 0:
        return [Collective("ZeRO 0", "gradients", "all_reduce", gradients, buckets)]
    if stage in (1, 2):
        times = reductions if stage == 2 else 1
        return [
            Collective(
                f"ZeRO {stage}", "gradients", "all_reduce", gradients * times, buckets * times
            ),
            Collective(f"ZeRO {stage}", "updated parameters", "all_gather", updated, buckets),
        ]
    cached = choice.micro_batch is not None
    gathers = passes * (3 if cached else 2)
    if choice.checkpoint_video or choice.checkpoint_text:
        gathers += passes
    depth = config.video.depth + config.text.depth
    moved = workload.precision.parameter * float(sizes.total - sizes.persistent)
    return [
        Collective(
            "ZeRO 3",
            "parameters",
            "all_gather",
            moved * gathers,
            gathers * depth * MODULES_OF_A_BLOCK,
        ),
        Collective(
            "ZeRO 3", "gradients", "reduce_scatter", gradients * reductions, buckets * reductions
        ),
    ]


def teacher_traffic(workload: Workload, choice: Choice) -> list[Collective]:
    """Return what gives every rank the whole moving average, for the teacher.

    An update gathers the parameters twice, with the average in the masters' place and without it.
    Stage 3 gathers only its persistent parameters so, and those of the video tower one by one.
    """
    sizes, stage, world = workload.parameters, choice.zero_stage, workload.world_size
    if not sizes.teacher or stage == 0 or world == 1:
        return []
    config, size = workload.config, workload.precision.parameter
    if stage == 3:
        elements, calls = 2 * sizes.persistent + sizes.teacher, 2 + sizes.teacher_parameters
    else:
        buckets = max(1, math.ceil(sizes.trained / config.deepspeed.bucket_elements))
        elements, calls = 2 * sizes.trained, 2 * buckets
    share = 1 / config.ema.every_steps
    return [
        Collective(
            f"ZeRO {stage}",
            "average for the teacher",
            "all_gather",
            share * size * elements,
            math.ceil(share * calls),
        )
    ]


def micro_batches(workload: Workload, choice: Choice) -> int:
    """Return the number of encoder passes over a rank's batch."""
    return math.ceil(workload.local_batch / (choice.micro_batch or workload.local_batch))


def step_traffic(workload: Workload, choice: Choice) -> list[Collective]:
    """Return all collectives of a step that grow with the model or the batch."""
    return [
        *loss_traffic(workload),
        *zero_traffic(workload, choice),
        *teacher_traffic(workload, choice),
    ]
