"""`svilm localize`: features, classification, prediction and evaluation of untrimmed videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, RunDir, WeightsKind
from svilm_fast.core.terminal import print

Features = Annotated[Path, typer.Option(help="folder of features")]
Annotations = Annotated[Path, typer.Option(help="annotations, ActivityNet JSON")]
Subset = Annotated[str, typer.Option(help="subset of the annotations")]
Classes = Annotated[Path, typer.Option(help="class names, one a line")]


def extract(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    run: RunDir,
    out: Annotated[Path, typer.Option(help="folder for one Parquet file per video")],
    stride: Annotated[int, typer.Option(min=1, help="frames between two vectors")] = 16,
    clip: Annotated[int, typer.Option(min=1, help="frames that a vector sees")] = 16,
    fps: Annotated[
        float | None, typer.Option(help="frames a second; default: the video's own rate")
    ] = 15.0,
    batch: Annotated[int, typer.Option(min=1, help="clips per call of the encoder")] = 16,
    weights: WeightsKind = None,
    device: Device = "auto",
) -> None:
    """Compute features of long videos at a stride, with a finished run's video encoder.

    Every frame is decoded once. Stopped at any moment and started again, it continues. Videos that
    cannot be decoded are listed in failed.jsonl.
    """
    from svilm_fast.tasks.localization.extract import FAILED, extract_folder, video_files
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.clip_encoder import ClipEncoder
    from svilm_fast.train.run.loaded_run import load_run

    found = video_files(videos)
    loaded = load_run(run, device=choose_device(device, 0), weights=weights)
    encoder = ClipEncoder(loaded)
    report = extract_folder(
        found,
        out,
        encoder,
        _extraction(loaded.config, stride=stride, clip=clip, fps=fps, batch=batch),
        encoder.identity(),
        limits=_limits(loaded.config),
        advance=lambda video: print(f"  {video}", flush=True),
    )
    print(f"{report.written} written, {report.earlier} were there, {len(report.failed)} failed")
    for skip in report.failed[:10]:
        print(f"  {skip.sample}: {skip.reason}: {skip.message}")
    if report.failed:
        print(f"all failed videos: {out / FAILED}")
        raise typer.Exit(1)
