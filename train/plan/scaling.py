"""Tables of predicted step time, memory, traffic and efficiency over ranks and batches."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.chooser import DoesNotFitError, Option, choose
from svilm_fast.train.plan.devices import GIB, Device
from svilm_fast.train.plan.links import Links
from svilm_fast.train.plan.resolve import SETTINGS, with_values
from svilm_fast.train.plan.step_time import UTILISATION, StepTime, step_time
from svilm_fast.train.plan.traffic import step_traffic
from svilm_fast.train.plan.workload import Workload, workload_of

RANKS = (1, 8, 64, 256, 1024)
BATCHES = (1024, 16384, 131072, 1048576)


@dataclass(frozen=True)
class Point:
    """One row: the choice and its prediction, or the reason why nothing fits."""

    workload: Workload
    option: Option | None
    time: StepTime | None
    why_not: str = ""

    @property
    def model_flops(self) -> float:
        """FLOPs of the step without replays."""
        return float(self.workload.flops.total)


def scaling_tables(config: RunConfig, device: Device, links: Links) -> str:
    """Return the tables as Markdown; every memory setting is chosen separately for each row."""
    opened = with_values(config, {f"{block}.{name}": "auto" for block, name in SETTINGS})
    start = workload_of(opened, 1, on_gpu=device.on_gpu)
    points = [
        _point(start.with_batch(batch, world), device, links)
        for world in RANKS
        for batch in BATCHES
        if batch >= world
    ]
    return "\n".join([*_header(config, device, links), *_main_table(points, device)])


def _point(workload: Workload, device: Device, links: Links) -> Point:
    try:
        option = choose(workload, device, links, device.memory).chosen
    except DoesNotFitError:
        clips = workload.local_batch * workload.clip_bytes
        scores = sum(found.cost.kept for found in workload.costs())
        why = "clips" if clips > scores else "scores"
        return Point(workload, None, None, f"{why} {max(clips, scores) / GIB:,.0f} GiB")
    return Point(workload, option, step_time(workload, option.choice, links, device.peak))


def _header(config: RunConfig, device: Device, links: Links) -> list[str]:
    return [
        f"Predictions for `{config.run.name}`, not measurements. {device.name} with "
        f"{device.memory / GIB:.1f} GiB; executed FLOPs at {UTILISATION:.0%} of "
        f"{device.peak / 1e12:,.0f} TFLOP/s; {links.per_node} GPUs per node, "
        f"{links.intra / 1e9:.0f} GB/s inside a node and {links.inter / 1e9:.0f} GB/s per GPU "
        "between nodes; nothing overlapped.",
        "",
    ]


def _main_table(points: list[Point], device: Device) -> list[str]:
    lines = [
        "| GPUs | global batch | per GPU | chosen | peak GiB | step s | encoders s | losses s | "
        "loss comm ms | ZeRO comm ms | MiB sent for losses | efficiency | model FLOPs / peak |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for point in points:
        workload = point.workload
        world, batch = workload.world_size, workload.config.training.global_batch
        head = f"| {world:,} | {batch:,} | {workload.local_batch:,} |"
        if point.option is None or point.time is None:
            lines.append(f"{head} does not fit: {point.why_not} |" + " |" * 9)
            continue
        choice, time = point.option.choice, point.time
        sent = sum(
            part.size for part in step_traffic(workload, choice) if not part.part.startswith("ZeRO")
        )
        saved = "".join(
            letter
            for letter, on in (("v", choice.checkpoint_video), ("t", choice.checkpoint_text))
            if on
        )
        cache = f"cache {choice.micro_batch}" if choice.micro_batch else "no cache"
        chosen = f"ZeRO {choice.zero_stage}, {cache}" + (f", checkpoints {saved}" if saved else "")
        share = point.model_flops / (time.total * world * device.peak)
        lines.append(
            f"{head} {chosen} | {point.option.peak / GIB:.1f} | {time.total:,.3f} | "
            f"{time.compute:,.3f} | {time.losses:,.4f} | {time.loss_collectives * 1e3:,.2f} | "
            f"{time.zero_collectives * 1e3:,.2f} | {sent / 2**20:,.1f} | "
            f"{time.compute / time.total:.1%} | {share:.1%} |"
        )
    return lines
