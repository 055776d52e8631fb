"""`svilm report`: one page that shows a finished run."""

from __future__ import annotations

from typing import Annotated

import typer

from svilm_fast.commands.options import Device, MaxClips, RunDir, Split, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides


def report(
    run: RunDir,
    overrides: Overrides = None,
    split: Split = "test",
    max_clips: MaxClips = None,
    clips: Annotated[int, typer.Option(min=1, help="clips shown in detail")] = 4,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Write report.html and its pictures: curves, retrieval, groups, temporal assignment."""
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.loaded_run import load_run
    from svilm_fast.train.run.reporting import write_report

    chosen = choose_device(device, 0)
    loaded = load_run(run, device=chosen, overrides=overrides, weights=weights)
    path = write_report(loaded, split, chosen, max_clips=max_clips, clips=clips)
    print(f"wrote {path}")
