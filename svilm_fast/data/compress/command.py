"""`svilm data compress`: write compressed shards, or measure what compression gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.terminal import print
from svilm_fast.data.commands import EngineOption, WorkersOption
from svilm_fast.data.compress.clustering import (
    MOST_SKLEARN,
    SAMPLES,
    Clustering,
    KMeansEngine,
    Method,
    chosen_engine,
)
from svilm_fast.data.compress.shard import CompressSettings, Scope
from svilm_fast.data.compress.vectors import BLOCKS, Vectors
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import OfflineEngine


def compress(
    source: Annotated[str, typer.Argument(help="shards (folder, file or glob), or a list")],
    out: Annotated[Path | None, typer.Option(help="new or empty folder for the shards")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="write no shards, but a table of methods with pictures to this folder"),
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="folder of the listed videos; default: the list's own")
    ] = None,
    method: Annotated[Method, typer.Option(help="clustering of the palettes")] = Method.KMEANS,
    vectors: Annotated[
        Vectors,
        typer.Option(help="what a code is: a pixel's colour, a patch of 4x4, a block of 2x2x2"),
    ] = Vectors.COLOURS,
    bits: Annotated[int, typer.Option(min=1, max=8, help="bits of a code")] = 8,
    scope: Annotated[
        Scope, typer.Option(help="clips of one palette: each, a cluster of similar ones, a shard")
    ] = Scope.CLIP,
    clips_per_palette: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="of --scope cluster, on average")
    ] = 8,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="most frames of a clip, evenly spaced in time [default: 32; --report: 8]",
        ),
    ] = None,
    short_side: Annotated[
        int, typer.Option(min=8, max=16_384, help="shorter side of the frames, pixels, at most")
    ] = 256,
    kmeans: Annotated[
        KMeansEngine, typer.Option(help="engine of k-means; auto: the fastest that is installed")
    ] = KMeansEngine.AUTO,
    sample: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=10_000_000,
            help="vectors that are clustered [default: 10,000; agglomerative, --report: 4,000]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the sample and start")] = 0,
    clips: Annotated[
        int, typer.Option(min=1, max=1000, help="of --report: clips, drawn at random")
    ] = 4,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: WorkersOption = None,
) -> None:
    """Compress clips to palettes and codes in shards, or report what it would give.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    if (out is None) == (report is None):
        raise DataError("give either --out, for compressed shards, or --report, for a table")
    if report is not None:
        from svilm_fast.data.compress.report import write_report

        number = sample or SAMPLES[Method.AGGLOMERATIVE]
        lines = write_report(
            source,
            report,
            videos=videos,
            clips=clips,
            frames=frames or 8,
            short_side=short_side,
            sample=number,
            engine=chosen_engine(kmeans, Method.KMEANS, number),
            seed=seed,
        )
        print("\n".join(lines))
        return
    from svilm_fast.data.compress.run import compress as run
    from svilm_fast.data.index.commands import index

    wanted = sample or SAMPLES.get(method, MOST_SKLEARN)
    used = chosen_engine(kmeans, method, wanted)
    settings = CompressSettings(
        Clustering(method, used, 1 << bits, wanted, seed),
        BLOCKS[vectors],
        scope,
        frames or 32,
        short_side,
        clips_per_palette,
    )
    assert out is not None
    done = run(source, out, settings, videos=videos, engine=engine, workers=workers)
    print("\n".join([*done.lines(), *index([str(out)], {}, nouns=True)]))
