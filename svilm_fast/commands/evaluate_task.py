"""`svilm evaluate task`: measure a finished run with its task's evaluators."""

from __future__ import annotations

from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides


def evaluate_task(
    run: RunDir,
    overrides: Overrides = None,
    split: Split = "test",
    max_clips: MaxClips = None,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Measure a run with the evaluators of its task; print and write figures and protocol."""
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.evaluate import evaluate_run
    from svilm_fast.train.run.loaded_run import load_run

    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    metrics, protocol = evaluate_run(loaded, split, chosen, max_clips=max_clips)
    source = f"step {loaded.step}, {loaded.weights.value} weights"
    print(f"{loaded.config.task.name}, {split} split, {source}")
    for name, value in metrics.items():
        print(f"{name:24} {value:.4g}")
    if protocol:
        print("\n".join(["", *protocol, ""]))
    print(f"wrote {loaded.files.evaluation}")
