"""`svilm embed`: the embeddings of shards or of a list, for other programs and for training."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, RunDir, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.inference.features import FeatureFormat


class Grain(StrEnum):
    COARSE = "coarse"
    FINE = "fine"
    FUSED = "fused"
    NONE = "none"


def embed(
    source: Annotated[
        str, typer.Argument(help="shards (folder, glob or braces), or a CSV or JSONL list")
    ],
    run: RunDir,
    out: Annotated[Path, typer.Option(help="folder for one file per shard, or 1,000 rows")],
    weights: WeightsKind = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="clips per call of the encoder")] = 32,
    format: Annotated[
        FeatureFormat, typer.Option(help="npz, or parquet (needs the extra `parquet`)")
    ] = FeatureFormat.NPZ,
    videos: Annotated[
        str | None, typer.Option(help="folder of a list's videos; default the list's own")
    ] = None,
    captions: Annotated[
        Grain | None, typer.Option(help="which captions; default those of the run")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="also write <list>.embeddings for training")
    ] = False,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="files at a time; each loads the model")
    ] = 1,
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
