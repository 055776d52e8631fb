"""`svilm export`: the model of a run as a folder to use and to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.commands.options import RunDir, WeightsKind
from svilm_fast.core.terminal import print


def export(
    run: RunDir,
    out: Annotated[Path, typer.Option(help="new or empty folder")],
    weights: WeightsKind = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="licence of the weights, for the model card: apache-2.0"),
    ] = None,
) -> None:
    """Export a run's model as a folder: weights, settings, tokenizer and model card."""
    from svilm_fast.train.run.export import export_run

    print("\n".join(export_run(run, out, weights=weights, licence=licence)))
