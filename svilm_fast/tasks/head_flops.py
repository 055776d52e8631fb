"""FLOPs of a step of a task with its own loss."""

from __future__ import annotations

from svilm_fast.models.flops import Flops, encoded_tokens, text_flops, video_flops
from svilm_fast.objectives.flops import StepFlops
from svilm_fast.tasks.base import HeadCost, TaskConfig


def step_flops_with(config: TaskConfig, cost: HeadCost) -> StepFlops:
    """Return forward and backward of the towers and the head, which counts as `objectives`."""
    batch, width = config.training.global_batch, config.model.embed_dim
    video = video_flops(
        config.video,
        width,
        tokens=encoded_tokens(config.video),
        groups=config.objectives.reads().uses_groups(config.video),
        outputs=cost.reads.outputs("clean"),
    )
    text = Flops()
    if cost.sequences:
        text = text_flops(config.text, width, cost.length) * cost.sequences
    return StepFlops(video * batch, text * batch, cost.flops * batch, Flops(), 0)
