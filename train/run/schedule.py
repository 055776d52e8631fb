"""The learning rate as a function of the step alone: a resumed run needs no schedule state."""

from __future__ import annotations

import math

from svilm_fast.train.config.schema import ScheduleConfig


def warmup_steps_of(schedule: ScheduleConfig, total_steps: int) -> int:
    """Return the steps of the linear warm-up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_fraction * total_steps)


def learning_rate(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Return the rate of step `step` (0-based) of `total_steps`.

    The warm-up reaches `peak` at step `warmup - 1`; the decay reaches the floor
    `final_fraction * peak` at the last step.
    """
    warmup = warmup_steps_of(schedule, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.shape == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    share = 1.0 - progress
    if schedule.shape == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final_fraction + (1.0 - schedule.final_fraction) * share)
