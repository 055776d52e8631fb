"""`svilm data`: render the embedded world, pack videos into shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.core.terminal import print
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import Engine

EngineOption = Annotated[
    Engine, typer.Option(help="processes of this machine, or tasks of a Ray cluster")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="shards at a time; default: as many as there are cores")
]


def world(
    out: Annotated[Path, typer.Option(help="folder for the shards of train, val and test")],
    train: Annotated[int | None, typer.Option(min=0, help="training clips")] = None,
    val: Annotated[int | None, typer.Option(min=0, help="validation clips")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="test clips")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of all clips")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="side of the square frames, pixels")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="frames per clip")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="replace a different world in the folder")
    ] = False,
) -> None:
    """Render the embedded world: short MP4 files of moving shapes with captions and truth."""
    from svilm_fast.data.world import render_world
    from svilm_fast.data.world.config import build_config

    named: dict[str, Any] = {
        "train": train,
        "val": val,
        "test": test,
        "seed": seed,
        "size": size,
        "frames": frames,
    }
    config = build_config(**{name: value for name, value in named.items() if value is not None})
    shown = sys.stderr.isatty()
    print(render_world(out, config, workers=workers, overwrite=overwrite, progress=shown))


def pack_videos(
    source: Annotated[str, typer.Argument(help="CSV or JSONL list, or a folder of videos")],
    out: Annotated[Path, typer.Option(help="new or empty folder for the shards")],
    videos: Annotated[
        str | None, typer.Option(help="folder of the listed videos; default: the list's own")
    ] = None,
    shard_samples: Annotated[int, typer.Option(min=1, help="videos or segments per shard")] = 1000,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="decoders per worker; default: cores per worker, at most 8"),
    ] = None,
    precut: Annotated[
        bool, typer.Option("--precut", help="cut and re-encode videos to clips made for training")
    ] = False,
    clip_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=86400, help="length of a clip of --precut, seconds [default: 10]"
        ),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, help="shorter side of a clip, pixels [default: 256]")
    ] = None,
    key_frame_seconds: Annotated[
        float | None,
        typer.Option(min=0.01, max=86400, help="seconds between key frames of a clip [default: 1]"),
    ] = None,
    crf: Annotated[
        int | None,
        typer.Option(min=0, max=51, help="quality of x264, 0 (no loss) to 51 [default: 23]"),
    ] = None,
    engine: EngineOption = Engine.LOCAL,
    workers: WorkersOption = None,
) -> None:
    """Check every video, pack the valid ones into shards, and list the refused with reasons.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.data.pack import pack
    from svilm_fast.data.precut import Precut

    given = {
        "clip_seconds": clip_seconds,
        "short_side": short_side,
        "key_frame_seconds": key_frame_seconds,
        "crf": crf,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if chosen and not precut:
        option = "--" + next(iter(chosen)).replace("_", "-")
        raise DataError(f"{option} is a setting of --precut: add --precut")
    report = pack(
        source,
        out,
        videos=videos,
        shard_samples=shard_samples,
        threads=threads,
        precut=Precut(**chosen) if precut else None,
        engine=engine,
        workers=workers,
    )
    print("\n".join(report.lines()))
