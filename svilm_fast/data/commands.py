"""`svilm data`: render the embedded world, pack videos into shards, index shards and lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from svilm_fast.core.terminal import print
from svilm_fast.data.errors import DataError
from svilm_fast.data.offline.engines import OfflineEngine

EngineOption = Annotated[
    OfflineEngine, typer.Option(help="processes of this machine, or tasks of a Ray cluster")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="shards at a time; default: as many as there are cores")
]


def world(
    out: Annotated[Path, typer.Option(help="folder for the shards of train, val and test")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="further settings of the world, values as JSON"),
    ] = None,
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
    """Render the embedded world: short MP4 files of moving shapes with captions and truth.

    The settings are the fields of `WorldConfig` (svilm_fast/data/world/config.py).
    """
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
    given = {name: value for name, value in named.items() if value is not None}
    config = build_config(**(_world_settings(settings or []) | given))
    shown = sys.stderr.isatty()
    print(render_world(out, config, workers=workers, overwrite=overwrite, progress=shown))


def _world_settings(pairs: list[str]) -> dict[str, Any]:
    """Return the settings in `object_counts=[1]` and `holdout=object`."""
    from svilm_fast.core.messages import suggestion
    from svilm_fast.data.world.config import WorldConfig

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise DataError(f"{pair!r} is not KEY=VALUE, for example object_counts=[1]")
        if key not in WorldConfig.model_fields:
            hint = suggestion(key, list(WorldConfig.model_fields), label="settings")
            raise DataError(f"unknown setting {key!r} of the world; {hint}")
        if key in settings:
            raise DataError(f"{key} is given twice")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def world_untrimmed(
    out: Annotated[Path, typer.Option(help="folder for videos, annotations.json, classes.txt")],
    train: Annotated[int, typer.Option(min=0, help="training videos")] = 60,
    val: Annotated[int, typer.Option(min=0, help="validation videos")] = 20,
    test: Annotated[int, typer.Option(min=0, help="test videos")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="seed of all videos")] = 0,
    size: Annotated[int, typer.Option(min=32, help="side of the square frames, pixels")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one per core")
    ] = None,
) -> None:
    """Render untrimmed videos of the world, 20 to 40 s, with ActivityNet JSON of their actions."""
    from svilm_fast.data.world.untrimmed import UntrimmedConfig, render_untrimmed

    config = UntrimmedConfig(train=train, val=val, test=test, seed=seed, size=size)
    print(render_untrimmed(out, config, workers=workers, progress=sys.stderr.isatty()))


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
    captions: Annotated[bool, typer.Option(help="refuse videos without a caption")] = True,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: WorkersOption = None,
) -> None:
    """Check every video, pack the valid ones into shards, and list the refused with reasons.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.data.config import DataConfig
    from svilm_fast.data.index.commands import index
    from svilm_fast.data.pack import pack
    from svilm_fast.data.precut import Precut

    given = {
        "clip_seconds": clip_seconds,
        "short_side": short_side,
        "key_frame_seconds": key_frame_seconds,
        "crf": crf,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    lines: list[str] = []
    if chosen and not precut:
        option = "--" + next(iter(chosen)).replace("_", "-")
        raise DataError(f"{option} is a setting of --precut: add --precut")
    report = pack(
        source,
        out,
        videos=videos,
        config=DataConfig() if captions else DataConfig(captions="none"),
        shard_samples=shard_samples,
        threads=threads,
        precut=Precut(**chosen) if precut else None,
        engine=engine,
        workers=workers,
        finished=lambda folder: lines.extend(index([str(folder)], {}, nouns=True)),
    )
    print("\n".join([*report.lines(), *lines]))


def index_sources(
    sources: Annotated[
        list[str],
        typer.Argument(help="folder or glob of shards, or a list; several as data.train has them"),
    ],
    videos: Annotated[
        str | None, typer.Option(help="folder of the listed videos; default: the list's own")
    ] = None,
    nouns: Annotated[
        bool, typer.Option(help="find the nouns of captions that come without")
    ] = True,
    extractor: Annotated[str, typer.Option(help="as data.nouns.extractor")] = "textblob",
    spacy_model: Annotated[str, typer.Option(help="as data.nouns.spacy_model")] = "en_core_web_sm",
    phrases: Annotated[bool, typer.Option(help="as data.nouns.phrases")] = True,
    json_bytes: Annotated[int | None, typer.Option(min=1, help="as data.limits.json_bytes")] = None,
    shard_members: Annotated[
        int | None, typer.Option(min=1, help="as data.limits.shard_members")
    ] = None,
    engine: EngineOption = OfflineEngine.LOCAL,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="shards at a time; default: one per core, at most 8; Ray: all"),
    ] = None,
) -> None:
    """Index shards or lists once, beside them, so that every run opens them at once.

    Stopped at any moment and started again with the same arguments, it continues.
    """
    from svilm_fast.data.index.build import BuildEngine
    from svilm_fast.data.index.commands import index

    limits = {"json_bytes": json_bytes, "shard_members": shard_members}
    settings = {
        "videos": videos,
        "nouns": {"extractor": extractor, "spacy_model": spacy_model, "phrases": phrases},
        "limits": {name: value for name, value in limits.items() if value is not None},
    }
    chosen = BuildEngine(engine, workers)
    print("\n".join(index(sources, settings, nouns=nouns, engine=chosen)))


def inspect(
    source: Annotated[
        str, typer.Argument(help="shards (folder, file or glob), or a CSV or JSONL list")
    ],
    videos: Annotated[
        str | None, typer.Option(help="folder of the listed videos; default: the list's own")
    ] = None,
    captions: Annotated[
        str, typer.Option(help="coarse, fine or fused, where a sample has one of each; or none")
    ] = "fused",
    clips: Annotated[int, typer.Option(min=1, help="clips to decode, drawn at random")] = 12,
    frames: Annotated[int, typer.Option(min=1, help="frames of each clip")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="draws other clips")] = 0,
    sheet: Annotated[
        Path | None, typer.Option(help="write a contact sheet of the clips to this PNG file")
    ] = None,
) -> None:
    """Print what a data set holds: samples, captions, nouns, videos, decoding time."""
    from svilm_fast.core.console import Console
    from svilm_fast.data import inspect as inspection
    from svilm_fast.data.config import build_data_config
    from svilm_fast.data.samples import open_split

    config = build_data_config(train=source, videos=videos, captions=captions)
    if sheet is not None:
        inspection.check_sheet(sheet)
    table = open_split(config, "train", nouns=True)
    places = inspection.drawn(table, clips, seed)
    looks = inspection.look_at(table, places, config, frames=frames, short_side=144)
    facts = inspection.caption_facts(table, seed)
    Console().print(inspection.facts_table(table, facts, looks, source))
    if sheet is not None:
        inspection.draw_sheet(looks, sheet, f"{source}: {len(looks)} of {len(table):,} clips")
        print(f"wrote {sheet}")


def check_decoding(
    sources: Annotated[
        list[str], typer.Argument(help="folders of videos, video files, shards, or lists")
    ],
    draws: Annotated[int, typer.Option(min=0, help="random choices of 8 frames per video")] = 3,
) -> None:
    """Compare decoding by groups of pictures with decoding everything; exit 1 on a difference."""
    from svilm_fast.core.console import Console
    from svilm_fast.data import check_decoding as checking

    checked = checking.check_sources(sources, draws)
    Console().print(checking.table_of(checked, draws))
    print(checking.summary(checked))
    if any(each.differences for each in checked):
        raise typer.Exit(1)
