"""`svilm data bench`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from svilm_fast.bench.environment import environment
from svilm_fast.bench.loading.loaders import PRODUCT
from svilm_fast.bench.loading.measure import Measurement, measure
from svilm_fast.bench.loading.sources import VideoSource, cache_folder, folder_source, made_source
from svilm_fast.bench.loading.stages import STAGES
from svilm_fast.bench.tables import terminal_table
from svilm_fast.core.console import Console
from svilm_fast.core.errors import UserError
from svilm_fast.core.machine import package_version

# Clips of a made source: enough CPU time to be measured, no more.
_CLIPS = {10: 8, 60: 4}


def bench(
    seconds: Annotated[
        str, typer.Option(help="lengths of the made videos, seconds, with commas between")
    ] = "10,60,600",
    videos: Annotated[
        Path | None, typer.Option(help="folder of videos to load as well, at most 16 of them")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="frames per clip")] = 8,
    size: Annotated[int, typer.Option(min=16, help="side of the square frames, pixels")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every loader on each source")] = 9,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Load clips, by stage and against a plain loop (and torchcodec where installed), in turn."""
    lengths = _lengths(seconds)
    if not lengths and videos is None:
        raise UserError("nothing to load: give --seconds or --videos")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results: list[Measurement] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        encoding = bar.add_task("encoding", total=sum(map(_clips, lengths)))
        sources: list[VideoSource] = []
        for length in lengths:
            sources.append(
                made_source(length, _clips(length), cache_folder(), lambda: bar.advance(encoding))
            )
        if videos is not None:
            sources.append(folder_source(videos, 16, Path(folder) / "shards"))
        bar.update(encoding, visible=False)
        task = bar.add_task("loading", total=rounds * len(sources))
        for source in sources:
            bar.update(task, description=f"loading {source.name}")
            results.append(measure(source, frames, size, rounds, lambda: bar.advance(task)))
    _show(results)
    if out is not None:
        _write(results, out)


def _clips(length: int) -> int:
    return _CLIPS.get(length, 1 if length > 60 else 8)


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        lengths = [0]
    if any(not 1 <= length <= 1200 for length in lengths):
        raise UserError(f"--seconds {text}: give whole numbers from 1 to 1200, as 10,60,600")
    return lengths


def _show(results: list[Measurement]) -> None:
    console = Console()
    columns = ["clips", "loader", "clips/s/core", f"{PRODUCT} is faster by", "95 % interval"]
    table = terminal_table(columns, right=columns[2:])
    for result in results:
        for name in result.cpu:
            cells = [result.source, name, f"{result.clips_per_core(name):.2f}"]
            if name != PRODUCT:
                middle, low, high = result.ratio(name)
                cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
            table.add_row(*cells)
    console.print(table)
    stages = terminal_table(
        ["clips", *STAGES], right=STAGES, title=f"\nCPU milliseconds per clip of {PRODUCT}"
    )
    for result in results:
        stages.add_row(result.source, *(f"{1e3 * result.stages[name]:.2f}" for name in STAGES))
    console.print(stages)


def _write(results: list[Measurement], out: Path) -> None:
    facts = environment(torch.device("cpu"))
    facts["packages"] |= {
        name: package_version(name) for name in ("torchcodec", "webdataset", "spdl-io")
    }
    content = {"environment": facts, "results": [result.as_json() for result in results]}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
