"""`svilm data filter`: choose clips by the similarity of video and caption under a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption
from svilm_fast.data.offline.engines import OfflineEngine


class CaptionGrain(StrEnum):
    COARSE = "coarse"
    FINE = "fine"
    FUSED = "fused"


def filter_clips(
    source: Annotated[
        str, typer.Argument(help="shards (folder, glob or braces), or a list, as data.train")
    ],
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
    batch_size: Annotated[int, typer.Option(min=1, help="clips per call of the encoder")] = 32,
    videos: Annotated[
        str | None, typer.Option(help="folder of a list's videos; default the list's own")
    ] = None,
    captions: Annotated[
        CaptionGrain | None, typer.Option(help="which captions; default those of the run")
    ] = None,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="files at a time; each loads the model")
    ] = 1,
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
