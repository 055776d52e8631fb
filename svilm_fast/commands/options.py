"""Options that the commands on a finished run share."""

from __future__ import annotations

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
