"""FLOPs of a configured step."""

from __future__ import annotations

from svilm_fast.core.errors import ConfigError
from svilm_fast.objectives.flops import StepFlops
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.schema import RunConfig


def flops_of_step(config: RunConfig) -> StepFlops:
    """Return forward and backward of the global batch; ConfigError if the task has none."""
    flops = task_of(config).flops()
    if flops is None:
        raise ConfigError(f"task {config.task.name!r} counts no FLOPs, so its steps have no plan")
    return flops
