"""Options that the commands on a finished run share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.train.config.options import Weights

RunDir = Annotated[Path, typer.Option("--run", help="folder of a run")]
Split = Annotated[str, typer.Option(help="train, val or test")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
WeightsKind = Annotated[
    Weights | None,
    typer.Option(
        "--weights", help="raw weights or their moving average; default: the setting ema.evaluate"
    ),
]
MaxClips = Annotated[int | None, typer.Option(min=1, help="use only the first N clips")]
# of commands that run a model over shards or a list
Source = Annotated[
    str, typer.Argument(help="shards (folder, glob or braces), or a CSV or JSONL list")
]
BatchSize = Annotated[int, typer.Option(min=1, help="clips per call of the encoder")]
ListVideos = Annotated[
    str | None, typer.Option(help="folder of a list's videos; default the list's own")
]
ModelWorkers = Annotated[
    int | None, typer.Option(min=1, help="files at a time; each loads the model")
]


class Grain(StrEnum):
    COARSE = "coarse"
    FINE = "fine"
    FUSED = "fused"
    NONE = "none"


Captions = Annotated[Grain | None, typer.Option(help="which captions; default those of the run")]
