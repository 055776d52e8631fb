"""`svilm data filter`: choose clips by the similarity of video and caption under a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import (
    BatchSize,
    Captions,
    Device,
    ListVideos,
    ModelWorkers,
    Source,
    WeightsKind,
)
from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption
from svilm_fast.data.offline.engines import OfflineEngine


def filter_clips(
    source: Source,
    out: Annotated[Path, typer.Option(help="folder for scores, selections and histograms")],
    run: Annotated[Path | None, typer.Option(help="finished run whose model scores")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="folder of `svilm embed` of the same source, instead")
    ] = None,
    keep_share: Annotated[
        float | None, typer.Option(min=1e-9, max=1.0, help="share of the best that is kept")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=-1.0, max=1.0, help="lowest score that is kept, instead")
    ] = None,
    weights: WeightsKind = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    videos: ListVideos = None,
    captions: Captions = None,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: ModelWorkers = 1,
) -> None:
    """Keep the clips whose video and caption are most similar under a model; print a histogram.

    Writes a selection that training reads (`data.select`); the data stay as they are. Stopped at
    any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.train.run.filter_clips import filter_clips

    lines = filter_clips(
        source,
        out,
        run_dir=run,
        embeddings=embeddings,
        share=keep_share,
        threshold=threshold,
        weights=weights,
        device=device,
        batch_size=batch_size,
        engine=engine,
        workers=workers,
        videos=videos,
        captions=None if captions is None else captions.value,
    )
    print("\n".join(lines))
