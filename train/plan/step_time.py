"""Predicted time of a step: executed FLOPs over a rate, and collectives on links."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.flops import Flops
from svilm_fast.models.locking import trained_layers
from svilm_fast.train.plan.links import Links
from svilm_fast.train.plan.traffic import step_traffic
from svilm_fast.train.plan.workload import Choice, Workload

# Share of a GPU's peak that the executed FLOPs reach: the project's target, not yet measured.
UTILISATION = 0.42
# fp32 operands of the losses become three tf32 products, each at half the bf16 rate
# (docs/decisions/0003-loss-products.md).
FP32_PRODUCT_COST = 6
AUTOCAST = "bf16_autocast"  # the only precision with which `products=autocast` has an effect


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step; collectives are assumed not to overlap with compute."""

    compute: float
    losses: float
    loss_collectives: float
    zero_collectives: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.losses + self.loss_collectives + self.zero_collectives


def executed_flops(workload: Workload, choice: Choice) -> tuple[float, float]:
    """Return the executed FLOPs of a step over all ranks: encoders, objectives.

    Activation checkpointing adds a forward of its tower's trained layers, the gradient cache a
    forward of both towers and of the local objectives, and backward of the losses recomputes
    some products.
    """
    flops = workload.flops
    cached = choice.micro_batch is not None

    def with_replays(part: Flops, checkpointed: bool, tower: VideoConfig | TextConfig) -> float:
        replayed = checkpointed * trained_layers(tower) / tower.depth
        return part.total + part.forward * (cached + replayed)

    encoders = with_replays(flops.video, choice.checkpoint_video, workload.config.video)
    encoders += with_replays(flops.text, choice.checkpoint_text, workload.config.text)
    losses = flops.objectives.total + flops.recomputed + cached * flops.local.forward
    return float(encoders), float(losses)


def step_time(
    workload: Workload,
    choice: Choice,
    links: Links,
    peak: float,
    utilisation: float = UTILISATION,
) -> StepTime:
    """Predict a step on ranks that reach the share `utilisation` of `peak` bf16 FLOP/s."""
    encoders, losses = executed_flops(workload, choice)
    rate = workload.world_size * peak * utilisation
    config = workload.config
    rounded = config.objectives.products == "autocast" and config.training.precision == AUTOCAST
    # The head of a task with its own loss computes as the towers do.
    rounded = rounded or workload.head is not None
    slowdown = FP32_PRODUCT_COST if workload.on_gpu and not rounded else 1
    sent = {"loss": 0.0, "zero": 0.0}
    for collective in step_traffic(workload, choice):
        kind = "zero" if collective.part.startswith("ZeRO") else "loss"
        sent[kind] += collective.seconds(links, workload.world_size)
    return StepTime(encoders / rate, losses * slowdown / rate, sent["loss"], sent["zero"])
