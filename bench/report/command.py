"""`svilm bench report`: a page and pictures from a result file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.terminal import print


def report(
    result: Annotated[Path, typer.Argument(help="result file of `svilm bench run`")],
    out: Annotated[Path, typer.Option(help="the page")] = Path("bench.html"),
    history: Annotated[
        list[Path] | None, typer.Option(help="older result files, or folders of them (repeat)")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="also write each picture as PNG into this folder")
    ] = None,
) -> None:
    """Write one HTML file: roofline, peers, scaling with the batch, history, every figure."""
    from svilm_fast.bench.report.history import read_history
    from svilm_fast.bench.report.page import build_page, sections_of, write_page
    from svilm_fast.bench.run.file import read_results
    from svilm_fast.report.page import write_pictures

    current = read_results(result)
    runs, others, skipped = read_history(history or [], current)
    if skipped:
        print(f"ignored {skipped} files in the folders that are not results of runs")
    sections = sections_of(current, runs, others)
    write_page(out, build_page(current, sections))
    print(f"wrote {out}")
    if png is not None:
        for path in write_pictures(sections, png):
            print(f"wrote {path}")
