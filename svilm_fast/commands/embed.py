"""`svilm embed`: the embeddings of shards or of a list, for other programs and for training."""

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
    RunDir,
    Source,
    WeightsKind,
)
from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.inference.features import FeatureFormat


def embed(
    source: Source,
    run: RunDir,
    out: Annotated[Path, typer.Option(help="folder for one file per shard, or 1,000 rows")],
    weights: WeightsKind = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    format: Annotated[
        FeatureFormat, typer.Option(help="npz, or parquet (needs the extra `parquet`)")
    ] = FeatureFormat.NPZ,
    videos: ListVideos = None,
    captions: Captions = None,
    store: Annotated[
        bool, typer.Option("--store", help="also write <list>.embeddings for training")
    ] = False,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: ModelWorkers = 1,
) -> None:
    """Embed the videos and captions of shards or of a list with a finished run.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.train.run.embed_shards import embed_shards

    lines = embed_shards(
        run,
        source,
        out,
        weights=weights,
        device=device,
        batch_size=batch_size,
        format=format,
        engine=engine,
        workers=workers,
        videos=videos,
        captions=None if captions is None else captions.value,
        store=store,
    )
    print("\n".join(lines))
