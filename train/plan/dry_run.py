"""`--dry-run` and `--print-ds-config`: the plan for the launched ranks; allocates nothing."""

from __future__ import annotations

import json
import os

import torch

from svilm_fast.models.precision import ELEMENT_SIZES
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.deepspeed import build_deepspeed_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan import report
from svilm_fast.train.plan.devices import GPUS, Device
from svilm_fast.train.plan.links import Links, links_of
from svilm_fast.train.plan.resolve import free_bytes, kind_of, needs_plan, resolve
from svilm_fast.train.plan.workload import workload_of
from svilm_fast.train.ranks.process_group import choose_device


def launched_ranks() -> int:
    """Return the number of ranks a launcher announced, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def planned_for(config: RunConfig, world_size: int) -> tuple[Device, Links, float]:
    """Return the device that the configuration would run on, its links and a rank's memory.

    A recipe for CUDA is planned for an H100 if this machine has no GPU.
    """
    memory = config.training.memory_bytes
    if config.distributed.device == "cuda" and not torch.cuda.is_available():
        device = GPUS["h100"]
        return device, links_of(device, None, 8), float(memory or device.memory)
    here = choose_device(config.distributed.device, 0)
    kind, links = kind_of(here)
    return kind, links, float(memory or free_bytes(here, world_size))


def deepspeed_json(config: RunConfig) -> str:
    """Return DeepSpeed's dictionary as JSON, with `auto` resolved."""
    world_size = launched_ranks()
    if needs_plan(config):
        config, _ = resolve(config, world_size, *planned_for(config, world_size))
    return json.dumps(build_deepspeed_config(config, world_size), indent=2)


def describe(config: RunConfig) -> tuple[str, bool]:
    """Return sizes, FLOPs, memory and what `auto` would become as text, and whether it fits.

    For a task with its own loss that does not tell its cost the text holds only sizes. Raises
    DoesNotFitError if something is `auto` and nothing fits.
    """
    world_size = launched_ranks()
    precision = ELEMENT_SIZES[config.training.precision]
    if config.task.own_loss and task_of(config).head_cost(precision) is None:
        return "\n".join(report.task_sizes(config, world_size)), True
    device, links, memory_bytes = planned_for(config, world_size)
    if needs_plan(config):
        resolve(config, world_size, device, links, memory_bytes)
    workload = workload_of(config, world_size, on_gpu=device.on_gpu)
    plan = report.make_plan(workload, device, links, memory_bytes)
    return report.text(plan), plan.problem is None
