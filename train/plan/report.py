"""A plan as text or JSON: parameters, FLOPs, memory by stage, the choice, traffic and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from svilm_fast.models.flops import count_parameters, encoded_tokens
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.deepspeed import local_batch_of
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.chooser import (
    Decision,
    DoesNotFitError,
    choose,
    fixed_choice,
    usable_bytes,
)
from svilm_fast.train.plan.devices import GIB, Device
from svilm_fast.train.plan.links import Links
from svilm_fast.train.plan.memory import (
    Memory,
    loader_bytes,
    loader_lines,
    memory,
    not_counted,
)
from svilm_fast.train.plan.step_time import UTILISATION, executed_flops, step_time
from svilm_fast.train.plan.traffic import step_traffic
from svilm_fast.train.plan.workload import Choice, Workload


@dataclass(frozen=True)
class TrainingPlan:
    """A workload on a device and the decision for it; `problem` if nothing fits."""

    workload: Workload
    device: Device
    links: Links
    memory_bytes: float
    decision: Decision | None
    problem: str | None

    @property
    def choice(self) -> Choice:
        """The chosen settings, or those of the recipe if nothing fits."""
        if self.decision is not None:
            return self.decision.chosen.choice
        workload = self.workload
        return fixed_choice(workload.config, workload.world_size, workload.local_batch)


def make_plan(
    workload: Workload, device: Device, links: Links, memory_bytes: float
) -> TrainingPlan:
    """Choose what is `auto`; if nothing fits, the plan has a problem and no decision."""
    try:
        decision = choose(workload, device, links, memory_bytes)
    except DoesNotFitError as error:
        return TrainingPlan(workload, device, links, memory_bytes, None, str(error))
    return TrainingPlan(workload, device, links, memory_bytes, decision, None)


def text(plan: TrainingPlan) -> str:
    """Return the plan as text."""
    workload, choice = plan.workload, plan.choice
    sizes = _sizes(workload)
    estimate = memory(workload, choice)
    lines = [*sizes, "", *_stages(plan), "", "memory of a rank", *estimate.table(), ""]
    lines += [*loader_lines(workload, plan.links.per_node), ""]
    if plan.decision is not None:
        lines += plan.decision.reasons()
    if plan.problem is not None:
        lines.append(plan.problem)
    lines += not_counted(workload.config)
    return "\n".join([*lines, "", *_prediction(plan)])


def _sizes(workload: Workload) -> list[str]:
    config = workload.config
    with torch.device("meta"):
        model: Any = task_of(config).model()
    towers, total = hasattr(model, "encoder"), workload.parameters.total
    encoder = count_parameters(model.encoder) if towers else {"total": 0}
    flops, video = workload.flops, config.video
    loss = "objectives" if workload.head is None else "head"
    lines = [f"{config.run.name}: {total:,} parameters"]
    if workload.parameters.trained < total:
        lines[0] += f", {workload.parameters.trained:,} of them trained"
    lines += [f"  {name:12} {size:,}" for name, size in encoder.items() if name != "total"]
    lines.append(f"  {loss:12} {total - encoder['total']:,}")
    clip = (
        f"clip: {video.frames} frames of {video.image_size} pixels, "
        f"{encoded_tokens(video):,} of {video.num_tokens:,} video tokens encoded, "
        f"{video.num_groups} groups, {video.num_segments} segments"
    )
    stored = f"video: {workload.clip_bytes / 2**20:,.3f} MiB of stored features"
    lines.append(clip if towers else stored)
    lines.append(
        f"step: {config.training.global_batch} {_items(workload)} over "
        f"{workload.world_size} ranks, {workload.local_batch} each"
    )
    lines.append(f"FLOPs per step, forward and backward: {flops.total / 1e12:,.3f} TFLOP")
    parts = {"video": flops.video, "text": flops.text} if towers else {}
    parts[loss] = flops.objectives
    lines += [f"  {name:12} {part.total / 1e12:,.3f} TFLOP" for name, part in parts.items()]
    return lines


def _items(workload: Workload) -> str:
    return "videos" if workload.stores_features else "pairs"


def task_sizes(config: RunConfig, world_size: int) -> list[str]:
    """Return the sizes of a task whose FLOPs and memory are unknown."""
    with torch.device("meta"):
        model = task_of(config).model()
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return [
        f"{config.run.name}: {total:,} parameters, {trained:,} of them trained",
        f"step: {config.training.global_batch} clips over {world_size} ranks, "
        f"{local_batch_of(config, world_size)} each",
        f"task {config.task.name!r} counts neither FLOPs nor memory",
    ]


def stage_table(plan: TrainingPlan) -> list[dict[str, Any]]:
    """Return peak bytes by ZeRO stage and micro-batch, with the other settings as chosen."""
    local = plan.workload.local_batch
    sizes: list[int | None] = [None]
    if plan.workload.head is None:  # otherwise there is no gradient cache
        sizes += [size for size in (local // 4, local // 16, local // 64) if size >= 1]
    rows = []
    for stage in (0, 1, 2, 3):
        if stage == 0 and plan.workload.config.training.precision == "bf16":
            continue
        for micro in sizes:
            reduction = "boundary" if stage == 0 else plan.choice.reduction
            choice = replace(plan.choice, zero_stage=stage, micro_batch=micro, reduction=reduction)
            peak = memory(plan.workload, choice).peak
            rows.append({"zero_stage": stage, "micro_batch": micro, "peak_bytes": peak})
    return rows


def _stages(plan: TrainingPlan) -> list[str]:
    rows, usable = stage_table(plan), usable_bytes(plan.memory_bytes, on_gpu=plan.device.on_gpu)
    micros = list(dict.fromkeys(row["micro_batch"] for row in rows))
    head = "".join(f"{'whole batch' if m is None else f'micro {m}':>14}" for m in micros)
    lines = [
        f"peak GiB by ZeRO stage and micro-batch ({usable / GIB:.2f} usable; * does not fit)",
        f"{'stage':>7}{head}",
    ]
    for stage in dict.fromkeys(row["zero_stage"] for row in rows):
        cells = [row["peak_bytes"] for row in rows if row["zero_stage"] == stage]
        shown = "".join(f"{f'{c / GIB:,.2f}' + '*' * (c > usable):>14}" for c in cells)
        lines.append(f"{stage:>7}{shown}")
    return lines


def _prediction(plan: TrainingPlan) -> list[str]:
    if not plan.device.on_gpu:
        return []
    workload, choice = plan.workload, plan.choice
    time = step_time(workload, choice, plan.links, plan.device.peak)
    lines = [
        f"predicted, not measured: {plan.device.name} at {UTILISATION:.0%} of "
        f"{plan.device.peak / 1e12:,.0f} TFLOP/s, nothing overlapped",
        f"  encoders {time.compute:.3f} s, losses {time.losses:.4f} s, collectives of the losses "
        f"{time.loss_collectives:.4f} s, of ZeRO {time.zero_collectives:.4f} s",
        f"  step {time.total:.3f} s, {workload.config.training.global_batch / time.total:,.0f} "
        f"{_items(workload)}/s",
    ]
    for sent in step_traffic(workload, choice):
        seconds = sent.seconds(plan.links, workload.world_size)
        lines.append(
            f"  {sent.part:10} {sent.what:24} {sent.kind:15} {sent.size / 2**20:>12,.2f} MiB in "
            f"{sent.calls:>5} calls, {seconds * 1e3:>9.3f} ms"
        )
    return lines


def as_json(plan: TrainingPlan) -> dict[str, Any]:
    """Return the plan as JSON values in bytes, seconds and FLOPs."""
    workload, choice = plan.workload, plan.choice
    estimate: Memory = memory(workload, choice)
    encoders, losses = executed_flops(workload, choice)
    found: dict[str, Any] = {
        "parameters": asdict(workload.parameters),
        "world_size": workload.world_size,
        "global_batch": workload.config.training.global_batch,
        "local_batch": workload.local_batch,
        "model_flops": workload.flops.total,
        "executed_flops": encoders + losses,
        "memory_bytes": plan.memory_bytes,
        "usable_bytes": usable_bytes(plan.memory_bytes, on_gpu=plan.device.on_gpu),
        "fits": plan.problem is None,
        "problem": plan.problem,
        "choice": asdict(choice),
        "peak_bytes": estimate.peak,
        "memory": {"always": estimate.resting, **estimate.phases},
        "loader": loader_bytes(workload, plan.links.per_node),
        "stages": stage_table(plan),
        "not_counted": not_counted(workload.config),
        "traffic": [asdict(sent) for sent in step_traffic(workload, choice)],
    }
    if plan.decision is not None:
        found["rejected"] = [
            {"choice": asdict(option.choice), "peak_bytes": option.peak, "why": why}
            for option, why in plan.decision.rejected
        ]
    if plan.device.on_gpu:
        time = step_time(workload, choice, plan.links, plan.device.peak)
        found["predicted_seconds"] = asdict(time) | {"total": time.total}
    return found
