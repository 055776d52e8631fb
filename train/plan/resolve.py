"""Replace every `auto` of a configuration by a value, once, at the start of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from svilm_fast.train.config.load import read_yaml
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.chooser import FIXED, FREE_SHARE, Decision, choose
from svilm_fast.train.plan.devices import CPU, GIB, GPUS, Device, peak_flops
from svilm_fast.train.plan.links import Links, links_of
from svilm_fast.train.plan.memory import not_counted
from svilm_fast.train.plan.workload import Choice, workload_of
from svilm_fast.train.ranks.process_group import Ranks

# (block, setting): the settings that may be `auto`.
SETTINGS = (
    ("training", "micro_batch"),
    ("distributed", "gradient_reduction"),
    ("deepspeed", "zero_stage"),
    ("video", "checkpoint_activations"),
    ("text", "checkpoint_activations"),
    ("objectives", "workspace_bytes"),
)


def device_peak(device: torch.device) -> float | None:
    """Return the peak of this rank's device in FLOP/s; None on a CPU."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device))


def open_settings(config: RunConfig) -> list[str]:
    """Return the dotted names of the settings that are `auto`."""
    return [f"{b}.{name}" for b, name in SETTINGS if getattr(getattr(config, b), name) == "auto"]


def needs_plan(config: RunConfig) -> bool:
    """Return whether a setting is `auto` that the engine cannot resolve without a plan."""
    return any(name != "distributed.gradient_reduction" for name in open_settings(config))


def with_choice(config: RunConfig, choice: Choice) -> RunConfig:
    """Return the configuration with every `auto` replaced by the chosen value."""
    reduction = "auto" if choice.micro_batch is None else choice.reduction
    chosen = {
        "training.micro_batch": choice.micro_batch,
        "distributed.gradient_reduction": reduction,
        "deepspeed.zero_stage": choice.zero_stage,
        "video.checkpoint_activations": choice.checkpoint_video,
        "text.checkpoint_activations": choice.checkpoint_text,
        "objectives.workspace_bytes": choice.workspace_bytes,
    }
    return with_values(config, {name: chosen[name] for name in open_settings(config)})


def resolve(
    config: RunConfig, world_size: int, device: Device, links: Links, memory_bytes: float
) -> tuple[RunConfig, list[str]]:
    """Return the configuration without `auto`, and the reasons as lines.

    Raises DoesNotFitError if nothing fits, and ConfigError for a batch that cannot be split.
    """
    if not needs_plan(config):
        return config, []
    workload = workload_of(config, world_size, on_gpu=device.on_gpu)
    decision: Decision = choose(workload, device, links, memory_bytes)
    header = (
        f"plan for {memory_bytes / GIB:.2f} GiB per rank, of which {FREE_SHARE:.0%} and "
        f"{FIXED[device.on_gpu] / GIB:.1f} GiB stay free; settled: "
        f"{', '.join(open_settings(config))}"
    )
    lines = [header, *decision.reasons(), *not_counted(config)]
    return with_choice(config, decision.chosen.choice), lines


def resolve_on_ranks(
    config: RunConfig, ranks: Ranks, recorded: Path | None = None
) -> tuple[RunConfig, list[str]]:
    """Resolve for a run: rank 0 decides by the least memory of any rank; collective.

    recorded: config.yaml of the resumed run, whose choices are kept, because a checkpoint fits one
    ZeRO stage and another micro-batch would round differently.
    """
    if not needs_plan(config):
        return config, []
    memory_bytes = config.training.memory_bytes
    (least,) = ranks.agree_max(-float(memory_bytes or free_bytes(ranks.device, ranks.world_size)))

    names = open_settings(config)

    def decide() -> tuple[dict[str, object], list[str]]:
        kept = _recorded(config, recorded)
        known = [name for name in names if name not in open_settings(kept)]
        lines = [f"kept from {recorded}: {', '.join(known)}"] if known else []
        device, links = kind_of(ranks.device)
        settled, reasons = resolve(kept, ranks.world_size, device, links, -least)
        return {name: _value(settled, name) for name in names}, lines + reasons

    # A task's configuration class is made when it is loaded, so it cannot be pickled.
    values, lines = ranks.from_first(decide)
    return with_values(config, values), lines


def _value(config: RunConfig, dotted: str) -> object:
    block, name = dotted.split(".")
    return getattr(getattr(config, block), name)


def free_bytes(device: torch.device, world_size: int) -> float:
    """Return the free bytes of this rank's GPU, or its share of the machine's free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device))
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return psutil.virtual_memory().available / on_this_machine


def kind_of(device: torch.device) -> tuple[Device, Links]:
    """Return the device and links that a plan for a real device uses."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "8"))
    if device.type == "cpu":
        return CPU, Links("loopback", per_node, CPU.nvlink, CPU.network)
    name = torch.cuda.get_device_name(device).lower()
    known = next((gpu for key, gpu in GPUS.items() if key.split("-")[0] in name), GPUS["a100-80"])
    peak = device_peak(device) or known.peak
    chosen = Device(name, known.memory, peak, known.nvlink, known.network)
    return chosen, links_of(chosen, None, per_node)


def _recorded(config: RunConfig, path: Path | None) -> RunConfig:
    if path is None or not path.is_file():
        return config
    found, values = read_yaml(path), {}
    for dotted in open_settings(config):
        block, name = dotted.split(".")
        value = (found.get(block) or {}).get(name, "auto")
        if value != "auto":
            values[dotted] = value
    return with_values(config, values)


def with_values(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """Return the configuration with new values of settings, by dotted name."""
    tree = config.model_dump()
    for dotted, value in values.items():
        block, name = dotted.split(".")
        tree[block][name] = value
    return type(config).model_validate(tree)
