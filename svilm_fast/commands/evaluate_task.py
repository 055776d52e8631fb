"""The command that evaluates a finished run with its task's evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides, Weights


def evaluate_task(
    run: Annotated[Path, typer.Option("--run", help="folder of a run")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    max_clips: Annotated[int | None, typer.Option(min=1, help="use only the first clips")] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(
            "--weights", help="as trained or their average; default: as ema.evaluate says"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Measure a run with the evaluators of its task; print and write every figure."""
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import evaluate_run
    from svilm_fast.train.run.loaded_run import load_run

    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    found = evaluate_run(loaded, split, chosen, max_clips=max_clips)
    read = f"step {loaded.step}, {loaded.weights.value} weights"
    print(f"{loaded.config.task.name}, {split} split, {read}")
    for name, value in found.items():
        print(f"{name:24} {value:.4g}")
    print(f"wrote {loaded.files.evaluation}")
