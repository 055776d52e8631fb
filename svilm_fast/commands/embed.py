"""`svilm embed`: the embeddings of shards, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import Device, RunDir, WeightsKind
from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.inference.features import FeatureFormat


def embed(
    source: Annotated[str, typer.Argument(help="shards: a folder, a glob or a path with braces")],
    run: RunDir,
    out: Annotated[Path, typer.Option(help="folder for one file per shard")],
    weights: WeightsKind = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="clips per call of the encoder")] = 32,
    format: Annotated[
        FeatureFormat, typer.Option(help="npz, or parquet (needs the extra `parquet`)")
    ] = FeatureFormat.NPZ,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="shards at a time; each loads the model")
    ] = 1,
) -> None:
    """Embed the videos and captions of shards with a finished run.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.train.ranks.process_group import choose_device
    from svilm_fast.train.run.embed_shards import embed_shards

    lines = embed_shards(
        run,
        source,
        out,
        weights=weights,
        device=str(choose_device(device, 0)),
        batch_size=batch_size,
        format=format,
        engine=engine,
        workers=workers,
    )
    print("\n".join(lines))
