"""`svilm evaluate task`: measure finished runs with their task's evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, MaxClips, Split, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides

Runs = Annotated[
    list[Path],
    typer.Option("--run", help="folder of a run; repeat it for the mean, as over three splits"),
]


def evaluate_task(
    run: Runs,
    overrides: Overrides = None,
    split: Split = "test",
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Measure a run with the evaluators of its task; print and write figures and protocol.

    Of several runs, such as those on the three splits of UCF101, the mean is printed last.
    """
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import evaluate_run
    from svilm_fast.train.run.loaded_run import load_run

    chosen = choose_device(device, 0)
    every: list[dict[str, float]] = []
    for folder in run:
        loaded = load_run(folder, device=chosen, overrides=overrides, weights=weights)
        metrics, protocol = evaluate_run(loaded, split, chosen, max_clips=max_clips)
        source = f"step {loaded.step}, {loaded.weights.value} weights"
        print(f"{loaded.config.task.name}, {split} split, {source}")
        for name, value in metrics.items():
            print(f"{name:24} {value:.4g}")
        if protocol:
            print("\n".join(["", *protocol, ""]))
        print(f"wrote {loaded.files.evaluation}")
        every.append(metrics)
    if len(every) > 1:
        print(f"\nmean of {len(every)} runs, and each")
        for name in (name for name in every[0] if all(name in found for found in every)):
            values = [found[name] for found in every]
            cells = "".join(f"{value:10.4g}" for value in values)
            print(f"{name:24} {sum(values) / len(values):<10.4g}{cells}")
